"""What the features of a network respond to: the analyses of Zeiler & Fergus, each in a module of its own.

The names below are loaded on first use, so that importing this package imports neither torch nor timm.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from attribkit.features._boxes import box_in_input, check_boxes, read_boxes
    from attribkit.features._correspondence import Correspondence, correspondence
    from attribkit.features._diagnosis import Diagnosis, diagnose
    from attribkit.features._evolution import Evolution, evolution
    from attribkit.features._inputs import Inputs
    from attribkit.features._invariance import Curve, Invariance, invariance
    from attribkit.features._occlusion_study import OcclusionStudy, occlusion_study
    from attribkit.features._snapshots import find_snapshots
    from attribkit.features._transforms import transform
    from attribkit.features.crops import Crops, project_mined
    from attribkit.features.draw import plot
    from attribkit.features.fields import ReceptiveField, receptive_field, receptive_fields
    from attribkit.features.galleries import figure, gallery
    from attribkit.features.mined import Mined, MinedLayer
    from attribkit.features.mining import mine

# One row a module: the module's name here, and the public names that it gives.
_MODULES = {
    "fields": ("ReceptiveField", "receptive_field", "receptive_fields"),
    "mining": ("mine",),
    "mined": ("Mined", "MinedLayer"),
    "crops": ("Crops", "project_mined"),
    "galleries": ("figure", "gallery"),
    "_evolution": ("Evolution", "evolution"),
    "_snapshots": ("find_snapshots",),
    "_invariance": ("Curve", "Invariance", "invariance"),
    "_transforms": ("transform",),
    "_occlusion_study": ("OcclusionStudy", "occlusion_study"),
    "_correspondence": ("Correspondence", "correspondence"),
    "_boxes": ("box_in_input", "check_boxes", "read_boxes"),
    "_diagnosis": ("Diagnosis", "diagnose"),
    "_inputs": ("Inputs",),
    "draw": ("plot",),
}
_SOURCES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Correspondence",
    "Crops",
    "Curve",
    "Diagnosis",
    "Evolution",
    "Inputs",
    "Invariance",
    "Mined",
    "MinedLayer",
    "OcclusionStudy",
    "ReceptiveField",
    "box_in_input",
    "check_boxes",
    "correspondence",
    "diagnose",
    "evolution",
    "figure",
    "find_snapshots",
    "gallery",
    "invariance",
    "mine",
    "occlusion_study",
    "plot",
    "project_mined",
    "read_boxes",
    "receptive_field",
    "receptive_fields",
    "transform",
]


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    if name not in _SOURCES:
        raise AttributeError(f"module 'attribkit.features' has no attribute {name!r}")
    value = getattr(_import_module(f"attribkit.features.{_SOURCES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names and the modules."""
    return sorted({*globals(), *__all__})
