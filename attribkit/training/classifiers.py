"""Linear classifiers on features that are at hand: softmax regression and a linear SVM, fitted to the optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Linear", "fit_linear"]


@dataclass(frozen=True)
class Linear:
    """A fitted classifier: ``((x - mean) / std) @ weight + bias``."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of each row [n] of features [n, D]."""
        return (((features - self.mean) / self.std) @ self.weight + self.bias).argmax(dim=1)


def fit_linear(
    features: Tensor, classes: Tensor, num_classes: int, *, kind: str = "softmax", decay: float = 1e-3, steps: int = 200
) -> Linear:
    """Fit a linear classifier, deterministically: the objective is convex and L-BFGS starts from zero.

    Features are standardised by their mean and standard deviation over the rows; one that never varies is left out.

    Parameters
    ----------
    features, classes
        [n, D] float, [n].
    num_classes
        How many classes there are.
    kind
        ``"softmax"``: mean cross-entropy; ``"svm"``: one against the rest, mean squared hinge.
    decay
        Half of this times the squared norm of the weights is added.
    steps
        The most iterations.
    """
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = torch.where(std > 1e-8, std, torch.full_like(std, float("inf")))
    x = (features - mean) / std
    weight = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    signs = 2 * F.one_hot(classes, num_classes).to(x.dtype) - 1
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        scores = x @ weight + bias
        if kind == "softmax":
            loss = F.cross_entropy(scores, classes)
        else:
            loss = (1 - signs * scores).clamp_min(0).square().sum(dim=1).mean()
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Linear(mean, std, weight.detach(), bias.detach())
