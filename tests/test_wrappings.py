"""Models in other wrappings: compiled, parallel, parametrised, in other precisions and formats."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import eval_frame
from torch.nn.utils import parametrizations, parametrize

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
METHODS = (*oracle.METHODS, "occlusion")
OPTIONS = {"occlusion": {"window": 8, "stride": 6}}


class Net(nn.Module):
    """A small network with what wrappings like to touch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GELU())
        self.head = nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x):
        x = self.stem(x)
        x = F.max_pool2d(F.relu(self.body(x) - x), 2)
        return self.head(x.mean((2, 3)))


def maps(model, x=X, **kwargs):
    kwargs.setdefault("target", 2)
    return {m: ak.attribute(model, x, method=m, **kwargs, **OPTIONS.get(m, {})).values for m in METHODS}


def same(found, expected, tolerance=0.0):
    for method, values in expected.items():
        scale = values.abs().max()
        assert scale > 0
        assert (found[method] - values).abs().max() <= tolerance * scale, method


@pytest.fixture(scope="module")
def plain():
    return maps(Net())


# -- parallel, compiled, functional ----------------------------------------------------------------------------------


def test_data_parallel_is_unwrapped(plain):
    net = nn.DataParallel(Net())
    same(maps(net), plain)
    found = ak.attribute(net, X, method="deconvnet", target=ak.Unit("stem.2", 1))  # names are those of the model inside
    assert found.values.any()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it compiles
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "how", ["a copy", "in place", "a submodule", "a submodule in place", "the method", "a function"]
)
def test_compiled_models_run_as_written(plain, how, backend):
    torch.compiler.reset()
    net = model = Net()
    if how == "a copy":
        model = torch.compile(net, backend=backend)
    elif how == "in place":
        net.compile(backend=backend)
    elif how == "a submodule":
        net.stem = torch.compile(net.stem, backend=backend)
    elif how == "a submodule in place":
        net.body.compile(backend=backend)
    elif how == "the method":
        net.forward = torch.compile(net.forward, backend=backend)
    else:
        gelu = torch.compile(lambda x: F.gelu(x), backend=backend)
        net.body[1].forward = lambda x: gelu(x)
    before = model(X)  # compiled by now
    same(maps(model), plain)
    coverage = ak.attribute(model, X, method="deconvnet").coverage
    assert coverage.kinds["rectifier"] == (3, 3)
    assert coverage.kinds["max_pool"] == (1, 1)
    torch.testing.assert_close(model(X), before)
    torch.compiler.reset()


def test_the_compilers_stance_comes_back_after_overlapping_calls():
    """Several calls in different threads, the first to begin is the first to end."""
    torch.compiler.reset()
    model, stance = torch.compile(Net(), backend="eager"), eval_frame._stance
    inside, leave = threading.Event(), threading.Event()

    def waits(scores):
        inside.set()
        assert leave.wait(20)
        return scores[:, 0]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ak.attribute, model, X, "gradient", waits)
        assert inside.wait(20)

        def lets_go(scores):
            leave.set()
            first.result(20)
            return scores[:, 0]

        ak.attribute(model, X, "gradient", lets_go)
    assert eval_frame._stance is stance
    with pytest.raises(ZeroDivisionError):
        ak.attribute(model, X, "gradient", lambda scores: 1 / 0)
    assert eval_frame._stance is stance
    torch.compiler.reset()


def test_functional_call(plain):
    """A model under other parameters: attribution sees those in force, within the call and after it."""
    net, other = Net(), Net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5).add_(0.01)
    values = {**dict(other.named_parameters()), **dict(other.named_buffers())}

    class Under(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.func.functional_call(self.net, values, (x,))

    expected = maps(other)
    same(maps(Under()), expected)
    assert (expected["gradient"] - plain["gradient"]).abs().max() > 1e-3 * plain["gradient"].abs().max()
    same(maps(net), plain)
    assert all(p.grad is None for p in [*net.parameters(), *other.parameters()])


# -- parametrised weights --------------------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def _old_spectral(layer):
    return nn.utils.spectral_norm(layer, n_power_iterations=2)


PARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old spectral_norm": _old_spectral,
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", Double()),
}


@pytest.mark.parametrize("name", [*PARAMETRISED, "old weight_norm"])
def test_parametrised_weights(name):
    """The map is that of a plain model with the weights as they come out; buffers of the parametrisation stay."""
    net = Net()
    for layer in (net.stem[0], net.body[0], net.head):
        if name == "old weight_norm":
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(layer)
        else:
            PARAMETRISED[name](layer)
    net.double().eval()
    net(X)
    flat = Net()
    with torch.no_grad():
        for mine, theirs in ((flat.stem[0], net.stem[0]), (flat.body[0], net.body[0]), (flat.head, net.head)):
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(theirs.bias)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    same(maps(net), maps(flat), 1e-12)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in net.parameters())
    net.train()
    ak.attribute(net, X, target=1)
    assert net.training
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


# -- precision and memory --------------------------------------------------------------------------------------------


TOLERANCES = {torch.float16: 0.05, torch.bfloat16: 0.4, torch.float32: 1e-5}  # max pools may switch


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_dtypes(plain, dtype):
    found = maps(Net().to(dtype), X.to(dtype))
    for values in found.values():
        assert values.dtype == dtype
    same({key: value.double() for key, value in found.items()}, plain, TOLERANCES[dtype])


@pytest.mark.parametrize("what", ["model", "inputs", "both"])
def test_channels_last(plain, what):
    net, x = Net(), X
    if what != "inputs":
        net = net.to(memory_format=torch.channels_last)
    if what != "model":
        x = x.to(memory_format=torch.channels_last)
    found = maps(net, x)
    same(found, plain, 1e-10)
    assert all(values.shape == X.shape for values in found.values())
    unit = ak.Unit("stem.2", 3, (2, 5))
    for method in ("guided_backprop", "deconvnet"):
        expected = ak.attribute(Net(), X, method=method, target=unit).values
        torch.testing.assert_close(ak.attribute(net, x, method=method, target=unit).values, expected)
    assert x.is_contiguous(memory_format=torch.channels_last) == (what != "model")


# -- several inputs --------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Takes a map and a number for each sample, and a setting for all."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, mask=None, scale=None, *, gain=1.0):
        x = x if mask is None else x * mask
        out = self.net(x)
        return gain * (out if scale is None else out * scale[:, None])


def test_forward_kwargs_follow_their_samples():
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(3, 1, 16, 16, generator=generator, dtype=torch.float64)
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    target = torch.tensor([3, 0, 2])
    model = Two().eval()
    kwargs = {"mask": mask, "scale": scale, "gain": 3.0}
    copies = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in kwargs.items()}
    together = maps(model, target=target, forward_kwargs=kwargs)
    for size in (1, 2):
        same(maps(model, target=target, forward_kwargs=kwargs, batch_size=size), together, 1e-12)
    for i in range(3):
        row = slice(i, i + 1)
        own = {"mask": mask[row], "scale": scale[row], "gain": 3.0}
        alone = maps(model, X[row], target=target[row], forward_kwargs=own)
        same({key: values[row] for key, values in together.items()}, alone, 1e-12)
    # the gradient by hand, and the mask is passed through, not attributed
    x = X.clone().requires_grad_()
    scores = model(x, mask, scale, gain=3.0)[torch.arange(3), target]
    (expected,) = torch.autograd.grad(scores.sum(), x)
    assert torch.equal(together["gradient"], expected)
    assert kwargs.keys() == copies.keys()
    assert torch.equal(mask, copies["mask"])
    assert not mask.requires_grad
    # (score of the whole image - score with a window set to zero), by hand for the first window
    hidden = X.clone()
    hidden[:, :, :8, :8] = 0
    drop = scores.detach() - model(hidden, mask, scale, gain=3.0).detach()[torch.arange(3), target]
    torch.testing.assert_close(together["occlusion"][:, 0, 0, 0], drop)


def test_units_with_forward_kwargs():
    model, mask = Two().eval(), torch.rand(3, 1, 16, 16, dtype=torch.float64)
    for method in METHODS:
        target = ak.Unit("net.stem.2", 2)
        found, chunked = (
            ak.attribute(
                model,
                X,
                method=method,
                target=target,
                forward_kwargs={"mask": mask},
                batch_size=size,
                **OPTIONS.get(method, {}),
            )
            for size in (None, 1)
        )
        assert found.values.any()
        torch.testing.assert_close(found.values, chunked.values)
        assert torch.equal(found.scores, chunked.scores)


def test_an_unknown_forward_argument_is_the_models_own_error():
    with pytest.raises(TypeError, match="masc"):
        ak.attribute(Two().eval(), X, forward_kwargs={"masc": X})


# -- what cannot be walked -------------------------------------------------------------------------------------------


class Holds(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


@pytest.mark.filterwarnings("ignore:.*deprecated")  # scripting itself
@pytest.mark.parametrize("make", [lambda net: torch.jit.trace(net, X), lambda net: torch.jit.script(net.body)])
@pytest.mark.parametrize("inside", [False, True])
def test_scripted_modules_are_refused(make, inside):
    model = make(Net())
    model = Holds(model) if inside else model
    for call in (ak.attribute, ak.inspect):
        with pytest.raises(ak.AttribkitError, match=r"scripted.*pass the original") as caught:
            call(model, X)
        assert "\n" not in str(caught.value)
        assert not inside or "'part'" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_quantised_modules_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU())
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    for call in (ak.attribute, ak.inspect):
        with pytest.raises(ak.AttribkitError, match=r"quantised at '1'.*pass the float model") as caught:
            call(quantised, X.float())
        assert "\n" not in str(caught.value)


def test_parameters_of_inference_mode_are_refused():
    with torch.inference_mode():
        net = Net()
    with pytest.raises(ak.AttribkitError, match=r"'stem\.0\.weight'.*inference mode") as caught:
        ak.attribute(net, X)
    assert "\n" not in str(caught.value)


def test_attribution_within_inference_mode(plain):
    net = Net()
    with torch.inference_mode():
        same(maps(net, X.clone()), plain)
        assert torch.is_inference_mode_enabled()
