"""The methods keep what their tags claim."""

from attribkit_lrp.composites import LrpEpsilon, LrpEpsilonAlpha2Beta1, LrpEpsilonGammaBox, LrpEpsilonPlusFlat

from attribkit.testing import parametrize_with_checks


@parametrize_with_checks([LrpEpsilon, LrpEpsilonPlusFlat, LrpEpsilonGammaBox, LrpEpsilonAlpha2Beta1], examples=6)
def test_conformance(method, check):
    check(method)
