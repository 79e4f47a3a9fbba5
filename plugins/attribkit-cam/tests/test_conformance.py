"""The methods keep what their tags claim."""

from attribkit_cam.methods import GradCam, GradCamPlusPlus, GuidedGradCam, LayerCam, ScoreCam

from attribkit.testing import parametrize_with_checks


@parametrize_with_checks([GradCam, GradCamPlusPlus, LayerCam, ScoreCam, GuidedGradCam], examples=6)
def test_conformance(method, check):
    check(method)
