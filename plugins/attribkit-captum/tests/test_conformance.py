"""The methods keep what their tags claim; `attribkit check` runs the same on more examples."""

import pytest
from attribkit_captum import methods
from attribkit_captum.found import algorithms

from attribkit.testing import parametrize_with_checks


@parametrize_with_checks([getattr(methods, name) for name in algorithms()], examples=1)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_conformance(method, check):
    check(method)
