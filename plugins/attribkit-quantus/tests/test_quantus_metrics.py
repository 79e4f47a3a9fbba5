"""Every metric of Quantus takes `explain_func`, but for those that no explaining function could satisfy."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from attribkit_quantus import explain_func
from evaluated_nets import net

quantus = pytest.importorskip("quantus", reason="Quantus is not installed: its metrics are not tried")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]

METRICS = {
    name: kind
    for name, kind in vars(quantus).items()
    if inspect.isclass(kind) and issubclass(kind, quantus.Metric) and kind is not quantus.Metric
}
FEW = {
    "nr_samples": 3,
    "features_in_step": 128,
    "nr_runs": 5,
    "num_classes": 4,
    "return_nan_when_prediction_changes": False,
}
"""Arguments of constructors that keep a metric short and its numbers defined, where it has them."""
ARGUMENTS = {"TopKIntersection": {"k": 50}, "NonSensitivity": {"features_in_step": 1}}
CANNOT = {
    "SmoothMPRT": (KeyError, "it calls Quantus's own explain with the method's name, whatever explain_func is"),
    "BatchSufficiency": (ValueError, "it hands flattened images to the network"),
}
if not hasattr(np, "trapz"):
    CANNOT["IROF"] = (AttributeError, "Quantus calls numpy.trapz, which this NumPy no longer has")
COLOUR_CANNOT = {
    **CANNOT,
    "IROF": (Exception, "its masks have one channel"),
    "ROAD": (IndexError, "it draws pixels to replace among those of all channels"),
}
"""With several channels two more fail, with Quantus's explain as with any other."""


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("PYTEST", "1")  # Quantus: no waiting for warnings to be read


def run(name, channels, explain, **kwargs):
    kind, size = METRICS[name], 16 if name == "NonSensitivity" else 32
    parameters = inspect.signature(kind.__init__).parameters
    made = {key: value for key, value in FEW.items() if key in parameters} | ARGUMENTS.get(name, {})
    if "disable_warnings" in parameters:
        made["disable_warnings"] = True
    x = np.random.default_rng(0).normal(size=(3, channels, size, size)).astype(np.float32)
    inside = np.zeros((3, 1, size, size), dtype=bool)
    inside[:, :, size // 4 : -size // 4, size // 4 : -size // 4] = True
    more = {"custom_batch": [(1, 0, 0, 1)] * 3} if name == "Focus" else {}
    return kind(**made)(
        model=net(channels, size), x_batch=x, y_batch=np.array([0, 2, 3]), a_batch=None, s_batch=inside,
        explain_func=explain, explain_func_kwargs=kwargs, device="cpu", **more,
    )  # fmt: skip


def numbers(scores):
    if isinstance(scores, dict):
        return [number for value in scores.values() for number in numbers(value)]
    if isinstance(scores, list | tuple | np.ndarray):
        return [number for value in scores for number in numbers(value)]
    return [float(scores)]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_grey_images(name):
    if name in CANNOT:
        with pytest.raises(CANNOT[name][0]):
            run(name, 1, explain_func, method="gradient")
        pytest.skip(f"{name} cannot: {CANNOT[name][1]}")
    found = numbers(run(name, 1, explain_func, method="gradient"))
    assert found
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", sorted(METRICS))
def test_colour_images(name):
    # what compares a map with a mask wants one channel of it, as Quantus's own explain returns
    kwargs = {"method": "guided_backprop", "reduce_axes": (1,)}
    if name in COLOUR_CANNOT:
        with pytest.raises(COLOUR_CANNOT[name][0]):
            run(name, 3, explain_func, **kwargs)
        pytest.skip(f"{name} cannot: {COLOUR_CANNOT[name][1]}")
    found = numbers(run(name, 3, explain_func, **kwargs))
    assert found
    assert np.isfinite(found).all()


def test_quantus_evaluate_takes_it():
    x = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    found = quantus.evaluate(
        metrics={"sparseness": quantus.Sparseness(disable_warnings=True)},
        xai_methods=dict.fromkeys(("gradient", "deconvnet"), explain_func),
        model=net(), x_batch=x, y_batch=np.array([0, 2, 3]), explain_func_kwargs={"device": "cpu"},
    )  # fmt: skip
    assert set(found) == {"gradient", "deconvnet"}
    assert found["gradient"] != found["deconvnet"]
