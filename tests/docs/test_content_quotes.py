"""What docs/methods.md quotes from docs/evaluation.md is what stands there: the latter is written by its own script."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
METHODS = ("gradient", "guided_backprop", "deconvnet", "occlusion")


def row(measure: str) -> dict[str, str]:
    """Return each method's mean in the first table of the page that has the measure."""
    page = (DOCS / "evaluation.md").read_text("utf-8")
    line = next(line for line in page.splitlines() if line.startswith(f"| {measure}"))
    cells = [cell.strip().split("<br>")[0] for cell in line.strip("|").split("|")]
    return dict(zip(METHODS, cells[2:], strict=False))


def section(name: str) -> str:
    page = (DOCS / "methods.md").read_text("utf-8")
    return re.search(rf"^## {name}\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]


def test_randomised_layers_as_measured():
    found = row("Upper layers random")
    assert set(found) == set(METHODS)
    for method, number in found.items():
        assert f"rank correlation {number}" in re.sub(r"\s+(of )?", " ", section(method)), (method, number)


def test_max_sensitivity_as_measured():
    found = row("Max-sensitivity")
    assert f"max-sensitivity {found['gradient']}, the highest of the four" in section("gradient").replace("\n", " ")
    assert f"max-sensitivity {found['occlusion']}" in section("occlusion").replace("\n", " ")
    assert float(found["gradient"]) == max(map(float, found.values()))
    assert float(found["occlusion"]) == min(map(float, found.values()))


def test_better_than_random_by_insertion_and_deletion():
    """The page says so of the gradient."""
    page = (DOCS / "evaluation.md").read_text("utf-8")
    for measure, sign in (("Deletion", -1), ("Insertion", 1)):
        line = next(line for line in page.splitlines() if line.startswith(f"| {measure}"))
        means = [float(cell.strip().split("<br>")[0]) for cell in line.strip("| ").split("|")[2:]]
        assert sign * (means[0] - means[-1]) > 0


def test_the_share_of_images_that_keep_their_class():
    page = (DOCS / "evaluation.md").read_text("utf-8")
    share = re.search(r"gives (\d+)% of the images the class it gave before", page)[1]
    assert f"{share} % of the images keeping their class" in section("guided_backprop").replace("\n", " ").replace(
        "  ", " "
    )
