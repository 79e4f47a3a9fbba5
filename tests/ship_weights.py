"""Put a finished run's weights among the package's: ``python tests/ship_weights.py RUN [NAME] [EPOCH,…]``.

Writes attribkit/assets/weights/NAME.safetensors (float32) with NAME.json (command, recipe, versions, errors) and
NAME.log.csv beside it, and in NAME-snapshots/ the snapshots of the epochs named, in half precision. The
row of `attribkit.models.packaged.SHIPPED` is printed.
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = Path(__file__).resolve().parents[1] / "attribkit" / "assets" / "weights"
MOST = 8 * 2**20


def main(run: Path, name: str, epochs: list[int]) -> None:
    weights = run / "weights.safetensors"
    if weights.stat().st_size > MOST:
        raise SystemExit(f"{weights} has {weights.stat().st_size:,} bytes; at most {MOST:,} are shipped")
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    with safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["attribkit"])
    save_file(load_file(weights), WEIGHTS / f"{name}.safetensors", {"attribkit": json.dumps(about)})
    (WEIGHTS / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.copyfile(run / "log.csv", WEIGHTS / f"{name}.log.csv")
    folder = WEIGHTS / f"{name}-snapshots"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for epoch in epochs:
        shutil.copyfile(run / "snapshots" / f"epoch-{epoch:03d}.safetensors", folder / f"epoch-{epoch:03d}.safetensors")
    options = {**about["recipe"]["model_options"], "num_classes": len(about["labels"]),
               "in_chans": about["data_config"]["input_size"][0], "img_size": about["recipe"]["size"]}  # fmt: skip
    print("options:", options)
    print("data_config:", about["data_config"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "zfnet-fashion",
        [int(epoch) for epoch in sys.argv[3].split(",")] if len(sys.argv) > 3 else [],
    )
