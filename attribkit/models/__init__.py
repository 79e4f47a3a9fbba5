"""Models: ZFNet, and loading any other. Importing this registers ``timm.create_model("zfnet")``."""

from attribkit.models._zfnet import ZFNet, zfnet
from attribkit.models.labels import read_labels
from attribkit.models.loading import LoadedModel, load_model
from attribkit.models.packaged import default_model

__all__ = ["LoadedModel", "ZFNet", "default_model", "load_model", "read_labels", "zfnet"]
