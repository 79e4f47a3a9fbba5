"""The checks: plain functions ``check_<claim>(method, …)`` that raise `AssertionError` where a claim does not hold."""

from attribkit.testing.checks.batches import *  # noqa: F403
from attribkit.testing.checks.exact import *  # noqa: F403
from attribkit.testing.checks.frontdoor import *  # noqa: F403
from attribkit.testing.checks.general import *  # noqa: F403
from attribkit.testing.checks.occlusion import *  # noqa: F403
from attribkit.testing.checks.signals import *  # noqa: F403
from attribkit.testing.checks.unpooling import *  # noqa: F403
from attribkit.testing.checks.untouched import *  # noqa: F403
