"""The plugin: class activation maps. Nothing heavy is imported here."""

import attribkit as ak

requires_attribkit = ">=0.1,<1"

_METHODS = {
    "grad_cam": (
        "GradCam",
        "Feature maps weighted by their mean gradient (Selvaraju et al. 2017)",
        "Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1 and 2",
    ),
    "grad_cam_plus_plus": (
        "GradCamPlusPlus",
        "Feature maps weighted by their positive gradients, place by place (Chattopadhay et al. 2018)",
        "Chattopadhay et al., Grad-CAM++, WACV 2018, eq. 19",
    ),
    "layer_cam": (
        "LayerCam",
        "Each activation times its positive gradient (Jiang et al. 2021)",
        "Jiang et al., LayerCAM, IEEE Transactions on Image Processing 30, 2021, eq. 4 and 5",
    ),
    "score_cam": (
        "ScoreCam",
        "Feature maps weighted by the score of the image seen through them (Wang et al. 2020)",
        "Wang et al., Score-CAM, CVPR Workshops 2020, Algorithm 1",
    ),
    "guided_grad_cam": (
        "GuidedGradCam",
        "Guided backprop times Grad-CAM (Selvaraju et al. 2017)",
        "Selvaraju et al., Grad-CAM, ICCV 2017, §3.2",
    ),
}


@ak.hookimpl
def attribkit_methods(register):
    """Register the methods; their module is imported when one is first used."""
    for name, (class_name, summary, source) in _METHODS.items():
        register(name, f"attribkit_cam.methods:{class_name}", summary=summary, source=source)
