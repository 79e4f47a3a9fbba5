"""The methods keep what their tags claim."""

from attribkit_paths.noise import SmoothGrad, VarGrad
from attribkit_paths.paths import ExpectedGradients, InputXGradient, IntegratedGradients

from attribkit.testing import parametrize_with_checks


@parametrize_with_checks([IntegratedGradients, ExpectedGradients, InputXGradient, SmoothGrad, VarGrad], examples=5)
def test_conformance(method, check):
    check(method)
