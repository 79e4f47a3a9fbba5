"""Put finished runs' weights among the package's: ``python tests/ship_weights.py RUN…``, in the order of training.

A later run began with an earlier one's weights. Writes, in attribkit/assets/weights:

- zfnet-fashion.safetensors, the last run's weights (float32),
- zfnet-fashion.json: recipe, versions, errors, and the commands of all runs,
- zfnet-fashion.log.csv: their epochs in a row,
- zfnet-fashion-snapshots/: the convolutions of the runs' snapshots in half precision; the snapshot of epoch 0, from
  before the training, is kept whole.

The row of `attribkit.models.packaged.SHIPPED` is printed.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save

import attribkit
from attribkit.attribution import write_atomically

TARGET = Path(attribkit.__file__).parent / "assets" / "weights"
MOST_BYTES = 8_000_000


def ship(runs: list[Path]) -> None:
    """Copy what is shipped of the runs, the last of which holds the weights."""
    weights = (runs[-1] / "weights.safetensors").read_bytes()
    if len(weights) > MOST_BYTES:
        raise SystemExit(f"{runs[-1]}: the weights have {len(weights):,} bytes, more than {MOST_BYTES:,}")
    records = [json.loads((run / "run.json").read_text("utf-8")) for run in runs]
    rows: list[dict[str, str]] = []
    snapshots: dict[int, bytes] = {}
    for run in runs:
        before = len(rows)
        for file in sorted((run / "snapshots").glob("epoch-*.safetensors")):
            epoch = before + int(file.stem.partition("-")[2])
            tensors = load_file(file)
            kept = {name: t for name, t in tensors.items() if epoch == 0 or name.startswith("conv")}
            snapshots.setdefault(epoch, save(kept, {"epoch": str(epoch)}))
        with open(run / "log.csv", newline="", encoding="utf-8") as log:
            rows += [{**row, "epoch": str(before + int(row["epoch"]))} for row in csv.DictReader(log)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)

    folder = TARGET / "zfnet-fashion-snapshots"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("epoch-*.safetensors"):
        old.unlink()
    for epoch, content in snapshots.items():
        write_atomically(folder / f"epoch-{epoch:03d}.safetensors", content)
    write_atomically(TARGET / "zfnet-fashion.log.csv", text.getvalue().encode())
    about = {**records[-1], "commands": [record["command"] for record in records]}
    write_atomically(TARGET / "zfnet-fashion.json", (json.dumps(about, indent=2) + "\n").encode())
    write_atomically(TARGET / "zfnet-fashion.safetensors", weights)
    options = {**about["recipe"]["model_options"], "num_classes": len(about["labels"])}
    print(
        "options:", {**options, "in_chans": about["data_config"]["input_size"][0], "img_size": about["recipe"]["size"]}
    )
    print("data_config:", about["data_config"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    ship([Path(name) for name in sys.argv[1:]])
