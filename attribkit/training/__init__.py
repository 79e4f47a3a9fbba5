"""Training by the paper's recipe (§3): ZFNet, and any model of timm's; and the paper's tables that need training."""

from __future__ import annotations

from attribkit.training.ablations import AblationRow, ablation
from attribkit.training.evaluation import Errors, accuracy
from attribkit.training.finish import Result
from attribkit.training.generalisation import ProbeRow, probe
from attribkit.training.machine import Machine
from attribkit.training.recipe import Recipe, TrainingError
from attribkit.training.runs import load_run
from attribkit.training.trainer import train

__all__ = [
    "AblationRow",
    "Errors",
    "Machine",
    "ProbeRow",
    "Recipe",
    "Result",
    "TrainingError",
    "ablation",
    "accuracy",
    "load_run",
    "probe",
    "train",
]
