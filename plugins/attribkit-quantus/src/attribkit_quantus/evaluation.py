"""The evaluation: every method on the same images, measure by measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import attribkit as ak
from attribkit.datasets import ImageSource
from attribkit.errors import InputError, UnknownOptionError, did_you_mean
from attribkit.plugins import manager
from attribkit.progress import track
from attribkit_quantus import faithfulness, grids, measures
from attribkit_quantus.randomisation import plan, randomised
from attribkit_quantus.results import CONTROL, Evaluation, Randomised, Values
from attribkit_quantus.sample import Sample, draw
from attribkit_quantus.scoring import scores
from attribkit_quantus.settings import Settings
from attribkit_quantus.statistics import rank_correlation

Options = Mapping[str, Mapping[str, Any]]


def evaluate(
    loaded: ak.LoadedModel,
    source: ImageSource,
    methods: Sequence[str],
    settings: Settings | None = None,
    options: Options | None = None,
    failed: Callable[[str, Exception], None] | None = None,
) -> Evaluation:
    """Measure attribution methods on a model and images.

    Parameters
    ----------
    loaded
        The model, on its device, with its preprocessing.
    source
        The images: `attribkit.datasets.open_images`. Each is explained for the class that the model gives it.
    methods
        The methods' names.
    settings
        How; None: the defaults of `Settings`.
    options
        By method, its options.
    failed
        Called with the name and the error of a method that cannot be measured. The others go on without it; without
        ``failed`` the error is raised.

    Returns
    -------
    Evaluation

    Raises
    ------
    attribkit.AttribkitError
        A name, an option or the data cannot be used, or the model is no classifier.
    """
    settings = settings or Settings()
    options = options or {}
    check_methods(methods, options)
    sample = draw(loaded, source, settings)
    run = _Run(loaded, sample, settings, Evaluation(loaded.name, source.name, settings))
    run.prepare()
    for method in track(list(methods), "methods"):
        try:
            run.measure(method, dict(options.get(method, {})))
        except Exception as error:
            if failed is None:
                raise
            run.forget(method, error)
            failed(method, error)
    run.control()
    return run.found


def check_methods(methods: Sequence[str], options: Options) -> None:
    """Check the methods' names and options before any work is done.

    Raises
    ------
    UnknownNameError
        A method or an option is not known; the message suggests the nearest names.
    InputError
        There is no method.
    """
    if not methods:
        raise InputError("there is no method to evaluate")
    for name in methods:
        manager().method(name)
    for name, given in options.items():
        if name not in methods:
            raise UnknownOptionError(f"option for method {name!r}, which is not used: {did_you_mean(name, methods)}")
        known = ak.methods()[name].options
        for option in given:
            if option not in known:
                raise UnknownOptionError(f"method {name!r} has no option {option!r}: {did_you_mean(option, known)}")


class _Run:
    """One evaluation on its way."""

    def __init__(self, loaded: ak.LoadedModel, sample: Sample, settings: Settings, found: Evaluation) -> None:
        self.loaded, self.model, self.sample, self.settings, self.found = loaded, loaded.model, sample, settings, found
        found.facts.update(sample.facts)
        found.notes += sample.notes
        found.skipped += sample.skipped
        self.few = slice(0, min(settings.subset, len(sample.ids)))

    def prepare(self) -> None:
        """Do what is the same for all methods."""
        inputs, classes = self.sample.inputs, self.sample.classes
        if "faithfulness" in self.settings.parts:
            blurred = faithfulness.blurred(inputs)
            start = torch.cat([self._probability(*part) for part in self._batches(blurred, classes)])
            self.found.facts["probability of the class in the blurred image"] = f"{float(start.mean()):.2f} on average"
        if "randomisation" in self.settings.parts:
            cascade = self.found.cascade = plan(self.model, inputs[:1], self.settings.depths)
            for _, shadow in randomised(self.model, cascade, self.settings.seed):
                now = scores(shadow, inputs[self.few], self.settings.batch_size).argmax(1)
                self.found.same_class.append(float((now == classes[self.few]).float().mean()))
            if cascade.kept:
                self.found.facts["parameters that cannot be reset and stay"] = f"{cascade.kept:.1%}"

    def measure(self, method: str, options: dict[str, Any]) -> None:
        """Take a method's measures."""
        parts = self.settings.parts
        inputs, classes = self.sample.inputs, self.sample.classes
        values, seconds, batch = self._timed(method, options)
        if "runtime" in parts:
            self._keep(method, "seconds", seconds, groups=batch)
        self._from_maps(method, values)
        few, few_classes = inputs[self.few], classes[self.few]

        def explain(x: Tensor, targets: Tensor, model: Any = self.model, doing: str = "") -> Tensor:
            return self._maps(model, x, method, targets, options, doing)

        if "randomisation" in parts:
            self._randomise(method, values[self.few], explain)
        if "grid_pointing_game" in parts and self.sample.grids is not None:
            found = grids.localise(lambda x, c: explain(x, c, doing="grids"), self.sample.grids)
            self._keep_grids(method, found)
            self._show_grid(method, explain)
        if "sensitivity" in parts:
            found = measures.max_sensitivity(
                lambda x: explain(x, few_classes, doing="sensitivity"),
                few,
                values[self.few],
                repeats=self.settings.repeats,
                radius=self.settings.radius,
                seed=self.settings.seed,
            )
            self._keep(method, "sensitivity", found)
        self.found.methods.append(method)

    def control(self) -> None:
        """Take the measures of maps that are noise."""
        inputs = self.sample.inputs
        generator = torch.Generator().manual_seed(self.settings.seed)
        values = torch.randn(inputs.shape, generator=generator).to(inputs)
        self._from_maps(CONTROL, values)
        if self.sample.grids is not None:
            shape = self.sample.grids.images.shape
            noise = lambda x, c: torch.randn(shape, generator=generator).to(x)  # noqa: E731
            self._keep_grids(CONTROL, grids.localise(noise, self.sample.grids))

    def forget(self, method: str, error: Exception) -> None:
        """Take back what a method that failed has left."""
        self.found.failures[method] = " ".join(str(error).split()) or type(error).__name__
        for table in (self.found.values, self.found.curves):
            for key in [key for key in table if key[0] == method]:
                del table[key]
        self.found.randomised.pop(method, None)
        self.found.samples.pop(method, None)

    def _from_maps(self, method: str, values: Tensor) -> None:
        parts = self.settings.parts
        if "complexity" in parts:
            self._keep(method, "complexity", measures.complexity(values))
            self._keep(method, "sparseness", measures.sparseness(values))
        if "faithfulness" not in parts:
            return
        settings = self.settings
        curves: dict[str, list[Tensor]] = {"deletion": [], "insertion": [], "pixel_flipping": []}
        batches = self._batches(self.sample.inputs, self.sample.classes, self._heat(values))
        for inputs, classes, heat in track(batches, f"{method}: faithfulness"):
            place = faithfulness.places(heat, settings.seed)
            for name, curve in (("deletion", faithfulness.deletion), ("insertion", faithfulness.insertion)):
                curves[name].append(curve(self._probability, inputs, classes, place, settings.steps))
            flipped = faithfulness.pixel_flipping(
                self._logit, inputs, classes, heat, flips=settings.flips, steps=settings.steps, seed=settings.seed
            )
            curves["pixel_flipping"].append(flipped)
        for name, found in curves.items():
            whole = torch.cat(found)
            take = faithfulness.mean_drop if name == "pixel_flipping" else faithfulness.area
            self._keep(method, name, take(whole))
            self.found.curves[method, name] = whole.double().mean(0).cpu().numpy()

    def _randomise(self, method: str, before: Tensor, explain: Callable[..., Tensor]) -> None:
        cascade = self.found.cascade
        if cascade is None:
            return
        inputs, classes = self.sample.inputs[self.few], self.sample.classes[self.few]
        alike: dict[str, list[Any]] = {"signed": [], "absolute": []}
        for depth, shadow in randomised(self.model, cascade, self.settings.seed):
            after = explain(inputs, classes, shadow, f"down to {depth.layer} random")
            for reading, rows in alike.items():
                first, second = (_rows(measures.heatmap(maps, reading)) for maps in (before, after))
                rows.append(rank_correlation(first, second))
        found = self.found.randomised[method] = Randomised(np.stack(alike["signed"]), np.stack(alike["absolute"]))
        self._keep(method, "randomisation", found.signed[cascade.upper])
        self._keep(method, "randomisation_absolute", found.absolute[cascade.upper])

    def _keep_grids(self, method: str, found: Any) -> None:
        ids = [name for grid in self.sample.grid_ids for name in grid]
        groups = np.repeat(np.arange(len(found)), found.shape[1])
        self.found.values[method, "grid_pointing_game"] = Values(ids, found.ravel(), groups)

    def _show_grid(self, method: str, explain: Callable[..., Tensor]) -> None:
        """Keep the first grid and the map of its first cell, for the page."""
        if self.sample.grids is None:
            return
        image, target = self.sample.grids.images[:1], self.sample.grids.classes[:1, 0]
        if "" not in self.found.samples:
            shown = self.loaded.denormalize(image.cpu())[0].permute(1, 2, 0).numpy()
            self.found.samples[""] = np.broadcast_to(shown, (*shown.shape[:2], 3))
        self.found.samples[method] = explain(image, target).sum(1)[0].cpu().numpy()

    def _timed(self, method: str, options: dict[str, Any]) -> tuple[Tensor, Any, Any]:
        """Return a method's maps, the seconds an image and the batch of each."""
        inputs, classes = self.sample.inputs, self.sample.classes
        self._maps(self.model, inputs[:1], method, classes[:1], options)  # the first call imports and allocates
        found, seconds, batch = [], [], []
        parts = self._batches(inputs, classes)
        for number, (x, targets) in enumerate(track(parts, f"{method}: maps")):
            began = time.perf_counter()
            found.append(ak.attribute(self.model, x, method, targets, **options).values)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            seconds += [(time.perf_counter() - began) / len(x)] * len(x)
            batch += [number] * len(x)
        return torch.cat(found), np.array(seconds), np.array(batch)

    def _maps(
        self, model: Any, inputs: Tensor, method: str, classes: Tensor, options: dict[str, Any], doing: str = ""
    ) -> Tensor:
        parts = track(self._batches(inputs, classes), f"{method}: {doing}")
        return torch.cat([ak.attribute(model, x, method, targets, **options).values for x, targets in parts])

    def _batches(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        return list(zip(*(torch.split(tensor, self.settings.batch_size) for tensor in tensors), strict=True))

    def _heat(self, values: Tensor) -> Tensor:
        return measures.heatmap(values, self.settings.reading)

    def _probability(self, inputs: Tensor, classes: Tensor) -> Tensor:
        return _of(scores(self.model, inputs, len(inputs)).softmax(1), classes)

    def _logit(self, inputs: Tensor, classes: Tensor) -> Tensor:
        return _of(scores(self.model, inputs, len(inputs)), classes)

    def _keep(self, method: str, measure: str, numbers: Any, groups: Any = None) -> None:
        self.found.values[method, measure] = Values(self.sample.ids[: len(numbers)], numbers, groups)


def _of(table: Tensor, classes: Tensor) -> Tensor:
    return table.gather(1, classes[:, None])[:, 0]


def _rows(heat: Tensor) -> Any:
    return heat.flatten(1).cpu().numpy()
