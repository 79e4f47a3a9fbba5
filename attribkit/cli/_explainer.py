"""Explaining one image by every method: maps to files, sections to the page, numbers to the summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape

import attribkit
from attribkit.cli._group import describe, printable
from attribkit.cli._output import OutputError
from attribkit.cli._session import Answer, Session, versions
from attribkit.errors import InputError, MethodError, PluginError
from attribkit.plugins import manager
from attribkit.progress import track
from attribkit.report import figures
from attribkit.report.overlay import overlay
from attribkit.report.page import percent
from attribkit.report.parts import About, ImageSection, MethodSection
from attribkit.report.sections import array, method_section, method_title
from attribkit.report.sizes import Sizes
from attribkit.targets import Unit

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from attribkit.attribution import Attribution
    from attribkit.cli._job import Job
    from attribkit.cli._output import OutputFolder


Compute = Callable[[str, "Tensor", "Unit | int | None"], "tuple[Attribution, float]"]
"""From a method, an input [1, C, H, W] and a target to the attribution, and how many seconds it took."""


@dataclass(frozen=True)
class Explained:
    """One image, explained: its section of the page, its part of the summary, and what failed of it."""

    section: ImageSection
    top: list[dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    errors: list[Exception]


class Explainer:
    """Explains images as a job asks, with one model.

    Parameters
    ----------
    job
        What was asked for.
    out
        Where the maps go.
    session
        The model, where it is loaded already.
    maps
        Whether the maps are written beside the pictures.
    images
        How many images go onto the page: of many, its pictures are smaller.

    Raises
    ------
    AttribkitError
        The model cannot be loaded.
    """

    def __init__(
        self, job: Job, out: OutputFolder, session: Session | None = None, maps: bool = True, images: int = 1
    ) -> None:
        self.job = job
        self.out = out
        self.maps = maps
        self.sizes = Sizes.of(images, len(job.methods))
        self.unit = Unit(job.layer, job.channel) if job.layer is not None and job.channel is not None else None
        self.session = session or Session(job.model, job.weights, job.labels, job.device)

    def explain(self, photograph: Image.Image, path: Path, name: str, compute: Compute | None = None) -> Explained:
        """Explain one image.

        Parameters
        ----------
        photograph
            The image, RGB.
        path, name
            Its file, and the name of the files to write.
        compute
            Where a method's attribution comes from; None: it is computed. Where it is kept already, it is shown though
            the model fails on the image now.

        Raises
        ------
        InputError
            The target, the layer or an option is wrong.
        MethodError
            No method succeeded.
        Exception
            What the model raises.
        """
        session = self.session
        inputs = session.inputs(photograph)
        errors: list[Exception] = []
        try:
            answer = session.answer(inputs, needs_classes=self.unit is None)
        except Exception as error:
            if compute is None or isinstance(error, InputError):
                raise
            answer = Answer(None, ())
            errors.append(error)
        problem = describe(errors[0]) if errors else ""
        target = self.unit if self.unit is not None else session.class_target(self.job.target)
        view = figures.model_view(array(session.loaded.denormalize(inputs[0])))
        sections: list[MethodSection] = []
        methods: dict[str, dict[str, Any]] = {}
        for method in track(self.job.methods, escape(printable(name))):
            try:
                result, seconds = (compute or self._attribution)(method, inputs, target)
                section, methods[method] = self._method(method, result, seconds, answer, view, path, name)
            except OutputError:
                raise
            except Exception as error:
                if isinstance(error, InputError | PluginError) and not self.job.every:
                    raise
                section = self._failed(method, error)
                errors.append(_named(error, method))
            sections.append(section)
        if not methods:
            raise _all_of(errors)
        page = ImageSection(
            name=printable(name),
            path=printable(self.job.caption or str(path)),
            photograph=figures.photograph(photograph, longest=self.sizes.photograph),
            view=figures.photograph(view, longest=self.sizes.map),
            shown=view.size,
            size=photograph.size,
            top=answer.top,
            methods=tuple(sections),
            question=self._question(methods),
            problem=printable(problem),
        )
        top = [{"index": c.index, "label": c.label, "probability": c.probability} for c in answer.top]
        return Explained(page, top, methods, errors)

    def about(self) -> About:
        """Return what the page says of itself."""
        loaded = self.session.loaded
        facts = {"input": loaded.preprocessing} if loaded.preprocessing else {}
        facts |= {"device": str(self.session.device), **versions()}
        for method in self.job.methods:
            entry = manager().method(method)
            if entry.distribution != "attribkit":
                facts[entry.distribution] = entry.version
        return About(loaded.name, loaded.weights or "unknown", self.job.command, facts)

    def _attribution(self, method: str, inputs: Tensor, target: Unit | int | None) -> tuple[Attribution, float]:
        start = time.perf_counter()
        result = attribkit.attribute(
            self.session.model, inputs, method=method, target=target, **self.job.options.get(method, {})
        )
        if self.session.device.type == "cuda":
            torch.cuda.synchronize(self.session.device)
        return result, time.perf_counter() - start

    def _method(
        self,
        method: str,
        result: Attribution,
        seconds: float,
        answer: Answer,
        view: Image.Image,
        path: Path,
        name: str,
    ) -> tuple[MethodSection, dict[str, Any]]:
        words, reference = self._target(result)
        value = float(result.scores[0])
        score, probability = f"{value:.4g}".replace("-", "\N{MINUS SIGN}"), ""
        if isinstance(reference, int) and answer.probabilities is not None:
            probability = percent(float(answer.probabilities[reference]))
        entry = manager().method(method)
        section = method_section(
            result,
            summary=entry.summary,
            source=entry.source,
            group=entry.plugin.label,
            target=words,
            score=score,
            value=value,
            probability=probability,
            seconds=seconds,
            labels=self.session.labels,
            predicted=answer.top[0].index if answer.top else None,
            longest=self.sizes.map,
        )
        details = f"{path.name}; {self.session.loaded.name}; score {score}"
        details += f", probability {probability}" if probability else ""
        title = f"{method_title(method)}: {words}"
        values = array(result.values[0])
        with self.out.writing(f"{name}.{method}.png") as file:
            file.write_bytes(overlay(view, values, printable(title), printable(details)))
        if self.maps:
            with self.out.writing(f"{name}.{method}.safetensors") as file:
                result.save(file)
        numbers = {"target": reference, "score": value, "seconds": seconds, "coverage": result.coverage.to_dict()}
        return section, numbers

    def _target(self, result: Attribution) -> tuple[str, int | dict[str, Any]]:
        """Return what was explained: in words, and for the summary."""
        if isinstance(result.target, Unit):
            unit = result.target
            where = {"max": "where it is strongest", "all": "summed over its positions"}.get(str(unit.position), "")
            words = f"unit {unit.channel} of {unit.layer} {where or f'at {unit.position}'}"
            return words, {"layer": unit.layer, "channel": unit.channel, "position": unit.position}
        index = int(result.target[0])
        return f"{self.session.label(index)} ({index})", index

    def _question(self, methods: dict[str, dict[str, Any]]) -> str:
        """Return what the methods answered, in words."""
        if self.unit is not None:
            return f"What excites unit {self.unit.channel} of {printable(self.unit.layer)}?"
        label = self.session.label(next(iter(methods.values()))["target"])
        return f"Why “{printable(label.partition(',')[0])}”?"  # the first of a class's synonyms

    def _failed(self, method: str, error: Exception) -> MethodSection:
        entry = manager().method(method)
        return MethodSection(
            method,
            method_title(method),
            entry.summary,
            error=printable(describe(error)),
            source=entry.source,
            group=entry.plugin.label,
        )


def _all_of(errors: list[Exception]) -> Exception:
    """Return one error for methods that all failed; a reason that they share is said once."""
    reasons = {describe(error.__cause__) for error in errors if error.__cause__ is not None}
    if len(errors) == 1:
        return errors[0]
    if len(reasons) == 1:
        return MethodError(f"every method failed: {reasons.pop()}")
    return MethodError("; ".join(describe(error) for error in errors))


def _named(error: Exception, method: str) -> Exception:
    """Return an error that says which method failed, with the original as its cause."""
    named = MethodError(f"{method}: {describe(error)}")
    named.__cause__ = error
    return named
