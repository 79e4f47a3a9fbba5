"""The plugin: layer-wise relevance propagation. Nothing heavy is imported here."""

import attribkit as ak

requires_attribkit = ">=0.1,<1"

_METHODS = {
    "lrp_epsilon": ("LrpEpsilon", "LRP, the epsilon rule everywhere (Bach et al. 2015)"),
    "lrp_epsilon_plus_flat": (
        "LrpEpsilonPlusFlat",
        "LRP: flat rule first, z-plus for convolutions, epsilon for linear layers (Lapuschkin et al. 2019)",
    ),
    "lrp_epsilon_gamma_box": (
        "LrpEpsilonGammaBox",
        "LRP: box rule first, gamma for convolutions, epsilon for linear layers (Montavon et al. 2019)",
    ),
    "lrp_epsilon_alpha2_beta1": (
        "LrpEpsilonAlpha2Beta1",
        "LRP: alpha-2 beta-1 for convolutions, epsilon for linear layers (Bach et al. 2015)",
    ),
}


@ak.hookimpl
def attribkit_methods(register):
    """Register the composites; their module is imported when one is first used."""
    for name, (class_name, summary) in _METHODS.items():
        register(name, f"attribkit_lrp.composites:{class_name}", summary=summary)
