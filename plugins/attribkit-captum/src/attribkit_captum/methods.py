"""The methods: ``attribkit_captum.methods.Saliency`` is made when it is asked for, and so each class of Captum's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import captum.attr
import torch
from torch import Tensor, nn

import attribkit as ak
from attribkit.errors import InputError, InputTypeError, MethodError, did_you_mean
from attribkit_captum import defaults
from attribkit_captum.calls import Scores, begin_draws, calm, convolution, rows_of, twin
from attribkit_captum.found import algorithms, snake_case
from attribkit_captum.known import Known, known
from attribkit_captum.options import checked_seed, documented, options_of, parameters, refuse_unknown, required
from attribkit_captum.pools import without_dilation
from attribkit_captum.uses import told_apart


class CaptumMethod(ak.Method):
    """One of Captum's algorithms.

    Attributes
    ----------
    algorithm : type
        Captum's class.
    facts : Known
        What is known of it beyond its signature.
    """

    algorithm: ClassVar[type]
    facts: ClassVar[Known]

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return Captum's parameters with their defaults, and ``seed`` for what draws."""
        return {**options_of(cls.algorithm), **({"seed": 0} if cls.facts.random else {})}

    def attribute(self, model: nn.Module, inputs: Tensor, target: Any, **options: Any) -> Any:
        """Return Captum's map; with ``return_convergence_delta`` also ``convergence_delta`` [N] or [N, draws].

        Parameters
        ----------
        model, inputs, target
            As for every method.
        **options
            Captum's, by its own names: see the class. Where Captum has no default, or None, the plugin makes one.
        """
        known = self.options()
        refuse_unknown(self.name, options, known)
        given = {**known, **options}
        seed = checked_seed(given.pop("seed", 0))
        x = inputs.detach()
        looks_inside = self.looks_inside(given)
        with calm(x.device) if self.facts.random or looks_inside else contextlib.nullcontext():
            scores = Scores(
                twin(model, self.facts.rewrites) if looks_inside else model, target, entrance="layer" in given
            )
            self.prepare(scores, x, given)
            if looks_inside and self.wants_each_once(given):
                told_apart(scores, x[:1], torch.zeros(1, dtype=torch.long, device=x.device))
            try:
                return self.explain(scores, x, given, seed)
            except AssertionError as error:  # how Captum refuses what it is given
                if getattr(error, "attribkit_origin", None) == "model forward":
                    raise
                reason = " ".join(str(error).split()) or "Captum takes no such options"
                raise InputError(f"{self.name}: {reason}") from error

    @classmethod
    def looks_inside(cls, given: dict[str, Any]) -> bool:
        """Tell whether Captum wants the network's modules, or only its scores."""
        return "model" in required(cls.algorithm.__init__)

    @classmethod
    def wants_each_once(cls, given: dict[str, Any]) -> bool:
        """Tell whether Captum wants every module called once in a forward pass."""
        return cls.facts.once

    def prepare(self, scores: Scores, x: Tensor, given: dict[str, Any]) -> None:
        """Put into ``given`` what depends on the model; called once, before any sample."""

    def explain(self, scores: Scores, x: Tensor, given: dict[str, Any], seed: int) -> Any:
        """Return the map of all samples, each explained alone where the algorithm draws."""
        if self.facts.together and not self.mixes(scores):
            return self.explain_rows(scores, x, torch.arange(len(x), device=x.device), given, seed)
        found = []
        for row in range(len(x)):
            own = {name: self.own(name, value, row, len(x)) for name, value in given.items()}
            index = torch.tensor([row], device=x.device)
            found.append(self.explain_rows(scores, x[row : row + 1], index, own, seed))
        if isinstance(found[0], tuple):
            deltas = torch.cat([delta["convergence_delta"] for _, delta in found])
            return torch.cat([values for values, _ in found]), {"convergence_delta": deltas}
        return torch.cat(found)

    @classmethod
    def mixes(cls, scores: Scores) -> bool:
        """Tell whether Captum would let the samples of a batch change each other's map on this network."""
        return False

    @classmethod
    def own(cls, name: str, value: Any, row: int, count: int) -> Any:
        """Return an option for one sample alone; baselines that must be given are drawn from, whatever their number."""
        if name in required(cls.algorithm.attribute):
            return value
        return rows_of(value, row, count)

    def explain_rows(self, scores: Scores, x: Tensor, index: Tensor, given: dict[str, Any], seed: int) -> Any:
        """Return Captum's map of some samples."""
        if self.facts.random:
            begin_draws(seed, x.device)
        made = self.made(scores, given)
        # a tensor of its own that has gradients already: Captum would set the flag and warn of it
        rows = x.clone().requires_grad_()
        returned = made.attribute(rows, additional_forward_args=(index,), **self.arguments(x, given))
        values, delta = returned if isinstance(returned, tuple) else (returned, None)
        if values.shape != x.shape:
            raise MethodError(f"{self.name}: Captum returned {tuple(values.shape)} for images {tuple(x.shape)}")
        values = values.detach().to(x)
        if not bool(values.isfinite().any()):
            raise MethodError(f"Captum's {self.algorithm.__name__} gave no finite value for these images")
        if delta is None:
            return values
        delta = delta.detach().to(x).reshape(len(x), -1)
        return values, {"convergence_delta": delta[:, 0] if delta.shape[1] == 1 else delta}

    def made(self, scores: Scores, given: dict[str, Any]) -> Any:
        """Return the algorithm's instance."""
        return self.algorithm(scores, **{name: given[name] for name in parameters(self.algorithm.__init__)})

    def arguments(self, x: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of Captum's ``attribute``, with what the plugin makes where the caller gave None."""
        found = {name: given[name] for name in parameters(self.algorithm.attribute)}
        missing = {name for name, value in found.items() if value is None}
        if "baselines" in missing & required(self.algorithm.attribute):
            found["baselines"] = defaults.black(x, 2)  # DeepLiftShap takes no fewer
        if "sliding_window_shapes" in missing:
            found["sliding_window_shapes"] = defaults.window(x)
        if "strides" in missing and "sliding_window_shapes" in found:
            found["strides"] = defaults.half(found["sliding_window_shapes"], x)
        if "feature_mask" in missing:
            found["feature_mask"] = defaults.grid(x, self.facts.patches)
        if "internal_batch_size" in missing:
            found["internal_batch_size"] = max(len(x), defaults.ROWS)
        return found


class _DeepLift(CaptumMethod):
    """Max pooling with a dilation is written as pooling without one where Captum cannot carry back through it.

    The samples of a network with an ``nn.Softmax`` are explained one by one: Captum takes its mean over the batch.
    """

    def prepare(self, scores, x, given):
        without_dilation(scores)

    @classmethod
    def mixes(cls, scores):
        return any(type(module) is nn.Softmax for module in scores.modules())


class _FeaturePermutation(CaptumMethod):
    """A single image has none to exchange patches with: it is joined by itself, moved on by half its sides."""

    def explain(self, scores, x, given, seed):
        if len(x) > 1:
            return super().explain(scores, x, given, seed)
        moved = x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3))
        index = torch.zeros(2, dtype=torch.long, device=x.device)
        if given["perm_func"] is self.options()["perm_func"]:
            given = {**given, "perm_func": lambda rows, mask: torch.where(mask, rows.flip(0), rows)}
        return self.explain_rows(scores, torch.cat([x, moved]), index, given, seed)[:1]


class _GuidedGradCam(CaptumMethod):
    """``layer`` is a module or its name; default: the last convolution whose output has rows and columns."""

    def prepare(self, scores, x, given):
        layer, model = given["layer"], scores.model
        if isinstance(layer, nn.Module):
            raise InputTypeError(f"{self.name} layer must be a module's name, got a {type(layer).__name__}")
        if layer is None:
            layer = convolution(ak.inspect(model, x[:1]), model, scores.target.layer)
            given["layer"] = scores.image if layer is None else model.get_submodule(layer)
            return
        modules = dict(model.named_modules())
        if layer not in modules:
            near = did_you_mean(str(layer), modules)
            raise InputError(f"{self.name} layer {layer!r} is no module of the model; {near}")
        given["layer"] = modules[layer]


class _LRP(CaptumMethod):
    """``default_rule`` names the rule of layers that Captum has none for; None: Captum refuses the network."""

    @classmethod
    def options(cls):
        return {**super().options(), "default_rule": "EpsilonRule"}

    def prepare(self, scores, x, given):
        name = given.pop("default_rule")
        if name is None:
            return
        from captum.attr._utils import lrp_rules

        rules = {key: each for key, each in vars(lrp_rules).items() if _is_rule(each, lrp_rules.PropagationRule)}
        if name not in rules:
            raise InputError(f"{self.name} default_rule {name!r} is no rule; {did_you_mean(str(name), rules)}")
        captums = sys.modules[self.algorithm.__module__]
        has_rule = (*captums.SUPPORTED_LAYERS_WITH_RULES, *captums.SUPPORTED_NON_LINEAR_LAYERS)
        for module in scores.model.modules():
            if not list(module.children()) and type(module) not in has_rule and not hasattr(module, "rule"):
                module.rule = rules[name]()


def _is_rule(thing: Any, base: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, base) and thing is not base


class _NoiseTunnel(CaptumMethod):
    """``attribution_method`` names the method around which the noise is, ``attribution_options`` holds its options."""

    @classmethod
    def options(cls):
        return {**super().options(), "attribution_method": "saliency", "attribution_options": None}

    @classmethod
    def looks_inside(cls, given):
        return _inner(given["attribution_method"]).looks_inside(given)

    @classmethod
    def wants_each_once(cls, given):
        return given["attribution_method"][0].facts.once

    def prepare(self, scores, x, given):
        inner, own = _inner(given["attribution_method"])(), given.pop("attribution_options") or {}
        if not isinstance(own, Mapping):
            raise InputTypeError(f"{self.name} attribution_options must be a dict, got {own!r}")
        refuse_unknown(inner.name, own, inner.options())
        own = {**inner.options(), **own}
        own.pop("seed", None)
        if "layer" in own:
            scores.image = nn.Identity()
        inner.prepare(scores, x, own)
        given["attribution_method"] = (inner, own)

    def made(self, scores, given):
        inner, own = given["attribution_method"]
        return self.algorithm(inner.made(scores, own))

    def arguments(self, x, given):
        inner, own = given["attribution_method"]
        found = super().arguments(x, {**given, "attribution_method": None})
        return {**inner.arguments(x, own), **found}


def _inner(name: Any) -> type[CaptumMethod]:
    """Return the method that a noise tunnel is told to run, by its name, with or without ``captum.``, or its class."""
    if isinstance(name, type) and issubclass(name, CaptumMethod):
        return name
    names = {snake_case(each): each for each in algorithms() if each != "NoiseTunnel"}
    short = name.removeprefix("captum.") if isinstance(name, str) else name
    if short not in names:
        near = did_you_mean(str(short), names)
        raise InputError(f"captum.noise_tunnel attribution_method {name!r} is no method of Captum's; {near}")
    return _made(names[short])


_SPECIAL: dict[str, type[CaptumMethod]] = {
    "DeepLift": _DeepLift,
    "DeepLiftShap": _DeepLift,
    "FeaturePermutation": _FeaturePermutation,
    "GuidedGradCam": _GuidedGradCam,
    "LRP": _LRP,
    "NoiseTunnel": _NoiseTunnel,
}
_classes: dict[str, type[CaptumMethod]] = {}


def _made(name: str) -> type[CaptumMethod]:
    """Return the method of one of Captum's classes."""
    if name not in _classes:
        algorithm = getattr(captum.attr, name)
        facts = known(name, algorithms()[name].sentence)
        _classes[name] = type(
            name,
            (_SPECIAL.get(name, CaptumMethod),),
            {
                "__module__": __name__,
                "name": f"captum.{snake_case(name)}",
                "summary": facts.summary,
                "source": facts.source,
                "tags": facts.tags,
                "expected_failures": dict(facts.expected_failures),
                "algorithm": algorithm,
                "facts": facts,
            },
        )
        _classes[name].__doc__ = _described(_classes[name])
    return _classes[name]


def _described(method: type[CaptumMethod]) -> str:
    """Return a docstring: the summary, and Captum's own words on each option."""
    words = documented(method.algorithm)
    own = " ".join((_SPECIAL[method.__name__].__doc__ or "").split()) if method.__name__ in _SPECIAL else ""
    lines = [f"{method.summary}.", "", f"Source: {method.source}."]
    lines += ["", own] if own else []
    lines += ["", "Options", "-------"]
    for name, value in method.options().items():
        lines += [f"{name}", f"    Default {value!r}. {words[name]}." if words.get(name) else f"    Default {value!r}."]
    return "\n".join(lines)


def __getattr__(name: str) -> type[CaptumMethod]:
    """Make the method of a class of Captum's on its first use."""
    if name in algorithms():
        return _made(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the methods, whether they are made yet or not."""
    return sorted({*globals(), *algorithms()})
