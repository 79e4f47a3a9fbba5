"""Evaluate the methods on zfnet-fashion and write the tables of docs/evaluation.md.

    python docs/make_evaluation.py [--data fashion-mnist] [--out out/evaluation]

Needs the distribution attribkit-quantus and Fashion-MNIST; takes some minutes on two cores. What the page says of the
numbers is written here too, from the numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from attribkit_quantus import Evaluation, Settings, evaluate
from attribkit_quantus.page import page
from attribkit_quantus.tables import layers, markdown
from attribkit_quantus.verdict import verdict

import attribkit as ak
from attribkit.datasets import open_images
from attribkit.progress import shown

PAGE = Path(__file__).resolve().parent / "evaluation.md"
METHODS = ("gradient", "guided_backprop", "deconvnet", "occlusion")


def run(data: str, settings: Settings) -> tuple[Evaluation, str]:
    """Return an evaluation, and a sentence on how long it took."""
    began, used = time.perf_counter(), time.process_time()
    with shown(sys.stderr.isatty()):
        found = evaluate(ak.load_model("zfnet-fashion"), open_images(data), METHODS, settings)
    minutes, busy = (time.perf_counter() - began) / 60, (time.process_time() - used) / 60
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return found, f"{minutes:.1f} minutes by the clock, {busy:.1f} of processor time, {threads}"


def write(name: str, text: str) -> None:
    """Put a text between its markers in the page."""
    content = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = content.split(begin)
    _, after = rest.split(end)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run both evaluations and write what they found as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=Settings.images)
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="where the report and CSV files go")
    options = parser.parse_args(arguments)
    few = min(Settings.subset, options.images)
    found, took = run(options.data, Settings(images=options.images, subset=few))
    facts = "\n".join(f"- {name}: {value}" for name, value in found.facts.items())
    write("table", f"{markdown(found)}\n\n{facts}\n- the run: {took}")
    write("verdict", "\n".join(f"> {line}\\" for line in verdict(found)).removesuffix("\\"))
    write("layers", layers(found))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.html", page(found, "python docs/make_evaluation.py")),
        ("evaluation.csv", found.table_csv()),
        ("images.csv", found.images_csv()),
        ("randomisation.csv", found.randomisation_csv()),
    ):
        (options.out / name).write_text(text, encoding="utf-8")
    again, _ = run(options.data, Settings(images=few, parts=("faithfulness",), reading="signed"))
    write("signed", markdown(again))


if __name__ == "__main__":
    main()
