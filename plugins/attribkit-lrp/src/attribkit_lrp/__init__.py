"""The plugin: layer-wise relevance propagation. Nothing heavy is imported here."""

import attribkit as ak

requires_attribkit = ">=0.1,<1"

_METHODS = {
    "lrp_epsilon": (
        "LrpEpsilon",
        "LRP, the epsilon rule everywhere (Bach et al. 2015)",
        "Bach et al., On Pixel-Wise Explanations by Layer-Wise Relevance Propagation, PLOS ONE 2015, eq. 58",
    ),
    "lrp_epsilon_plus_flat": (
        "LrpEpsilonPlusFlat",
        "LRP: flat rule first, z-plus for convolutions, epsilon for linear layers (Lapuschkin et al. 2019)",
        "Lapuschkin et al., Unmasking Clever Hans Predictors, Nature Communications 10, 2019",
    ),
    "lrp_epsilon_gamma_box": (
        "LrpEpsilonGammaBox",
        "LRP: box rule first, gamma for convolutions, epsilon for linear layers (Montavon et al. 2019)",
        "Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019, §10.3",
    ),
    "lrp_epsilon_alpha2_beta1": (
        "LrpEpsilonAlpha2Beta1",
        "LRP: alpha-2 beta-1 for convolutions, epsilon for linear layers (Bach et al. 2015)",
        "Bach et al., On Pixel-Wise Explanations by Layer-Wise Relevance Propagation, PLOS ONE 2015, eq. 60",
    ),
}


@ak.hookimpl
def attribkit_methods(register):
    """Register the composites; their module is imported when one is first used."""
    for name, (class_name, summary, source) in _METHODS.items():
        register(name, f"attribkit_lrp.composites:{class_name}", summary=summary, source=source)
