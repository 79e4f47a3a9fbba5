"""Write attribkit/assets/fashion: the first 1,000 of Fashion-MNIST's test images, as idx files.

Run ``python tests/make_fashion_sample.py [FOLDER]``; it needs Debian's package dataset-fashion-mnist.
"""

import gzip
import struct
import sys
from pathlib import Path

from attribkit.datasets import FASHION_FOLDER, read_idx

COUNT = 1000
HERE = Path(__file__).resolve().parents[1] / "attribkit" / "assets" / "fashion"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("images-idx3", "labels-idx1"):
        values = read_idx(FASHION_FOLDER / f"t10k-{kind}-ubyte.gz")[:COUNT]
        header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        packed = gzip.compress(header + values.tobytes(), compresslevel=9, mtime=0)
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
