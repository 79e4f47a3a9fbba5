"""Training by the paper's recipe (§3): ZFNet, and any model of timm's.

Public: `train`, `Recipe`, `Machine`, `Result`, `TrainingError`, `accuracy`, `Errors`.
"""

from __future__ import annotations

from attribkit.training.evaluation import Errors, accuracy
from attribkit.training.finish import Result
from attribkit.training.machine import Machine
from attribkit.training.recipe import Recipe, TrainingError
from attribkit.training.trainer import train

__all__ = ["Errors", "Machine", "Recipe", "Result", "TrainingError", "accuracy", "train"]
