"""Images to train on or to look through: a folder, idx files (MNIST's layout), one of torchvision's data sets on disk.

Needs Pillow and NumPy only; torchvision is imported when one of its data sets is asked for. Nothing is ever downloaded.
"""

from attribkit.datasets._idx import read_idx
from attribkit.datasets.opening import FASHION_FOLDER, FASHION_LABELS, open_images, splits
from attribkit.datasets.source import First, ImageSource

__all__ = ["FASHION_FOLDER", "FASHION_LABELS", "First", "ImageSource", "open_images", "read_idx", "splits"]
