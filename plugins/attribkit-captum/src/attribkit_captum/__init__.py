"""The plugin: Captum's algorithms as methods ``captum.NAME``. Neither torch nor Captum is imported here."""

import attribkit as ak
from attribkit_captum.found import algorithms, snake_case
from attribkit_captum.known import known

requires_attribkit = ">=0.1,<1"


@ak.hookimpl
def attribkit_methods(register):
    """Register a method for each algorithm in the installed Captum that takes images."""
    for algorithm in algorithms().values():
        facts = known(algorithm.name, algorithm.sentence)
        register(
            f"captum.{snake_case(algorithm.name)}",
            f"attribkit_captum.methods:{algorithm.name}",
            summary=facts.summary,
            source=facts.source,
        )
