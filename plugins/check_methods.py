"""Run the conformance kit on every method of some distributions, several at once, and print a line for each.

    python plugins/check_methods.py [--examples 20] [--jobs 2] DISTRIBUTION…

The same as ``attribkit check`` on each method; one process for many methods, since importing takes longer than most
checks. Exits with 1 if a check fails that is not expected to.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

import attribkit


def run(task: tuple[str, int]) -> tuple[str, bool, str]:
    """Check one method; return its name, whether it passed, and what to print."""
    from attribkit.testing.runner import run_checks

    name, examples = task
    begin = time.process_time()
    results = run_checks(name, examples=examples)
    failed = [each for each in results if each.status == "failed"]
    counts = {status: sum(each.status == status for each in results) for status in ("xfail", "xpass")}
    line = f"{name}: {len(results) - len(failed) - counts['xfail']} of {len(results)} checks passed"
    line += f", {counts['xfail']} failed as expected" if counts["xfail"] else ""
    line += f", {counts['xpass']} passed unexpectedly" if counts["xpass"] else ""
    line += f", {examples} examples each, {time.process_time() - begin:.0f} s"
    return name, not failed, "\n\n".join([line, *(each.describe() for each in failed)])


def main() -> int:
    """Check the methods and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distributions", nargs="+", metavar="DISTRIBUTION")
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    methods = {name: info.distribution for name, info in attribkit.methods().items()}
    for distribution in options.distributions:
        if distribution not in methods.values():
            print(f"{distribution} brought no method", file=sys.stderr)
            return 1
    chosen = [name for name, distribution in methods.items() if distribution in options.distributions]
    passed = 0
    # spawned, not forked: a process that has used torch's threads must not be
    with multiprocessing.get_context("spawn").Pool(min(options.jobs, len(chosen))) as pool:
        for _, good, text in pool.imap_unordered(run, [(name, options.examples) for name in chosen], chunksize=1):
            print(text, flush=True)
            passed += good
    print(f"{passed} of {len(chosen)} methods passed", flush=True)
    return 0 if passed == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
