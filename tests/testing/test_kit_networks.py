"""Networks as data: they write themselves, in every writing the same, and what is printed is what was run."""

from __future__ import annotations

import collections

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from attribkit import Unit
from attribkit.testing import WRITINGS, Case, Images, Net, cases, images, networks, op, reference, seed_weights
from attribkit.testing.operations import GATES, KINDS, RECTIFIERS

quick = settings(
    max_examples=60,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
ARGS = {
    "conv": {"channels": 2, "kernel": 3, "padding": 1},
    "group_norm": {"groups": 1},
    "attention": {"fused": False},
    "max_pool": {"kernel": 2, "stride": 2},
    "avg_pool": {"kernel": 2, "stride": 2},
    "adaptive_max_pool": {"rows": 2, "columns": 3},
    "adaptive_avg_pool": {"rows": 2, "columns": 3},
    "linear": {"features": 3},
}
TWO = ("sum", "difference", "product", "concat")


def one_of(kind, shape=(4, 4, 5)):
    """Return a network with one operation of a kind, between a convolution and a head."""
    ops = [op("conv", 0, channels=4, kernel=1)]
    if kind == "linear":
        return Net(shape, (*ops, op("flatten", 1), op("linear", 2, features=3)))
    ops.append(op(kind, *((1, 0) if kind in TWO else (1,)), **ARGS.get(kind, {})))
    if kind not in ("flatten", "mean"):
        ops.append(op("flatten", 2))
    ops.append(op("linear", len(ops), features=2))
    return Net(shape, tuple(ops))


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_in_every_writing(kind):
    net = one_of(kind)
    x = images((2, *net.shape), seed=1)
    with torch.no_grad():
        values = reference.forward(net, net.build(), x)
        assert [tuple(value.shape[1:]) for value in values] == [tuple(shape) for shape in net.shapes]
        for writing in WRITINGS:
            torch.testing.assert_close(net.build(writing)(x), values[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number_passes_every_operation(kind):
    # check_receptive_field finds what a unit can see by it
    net = one_of(kind)
    x = images((1, *net.shape))
    x[0, :, 1, 2] = torch.nan
    with torch.no_grad():
        values = reference.forward(net, net.build(), x)
    assert values[2].isnan().any()


@pytest.mark.parametrize("fused", [False, True])
def test_attention_fused_or_not(fused):
    net = Net((3, 4, 4), (op("attention", 0, fused=fused), op("mean", 1), op("linear", 2, features=2)))
    other = Net((3, 4, 4), (op("attention", 0, fused=not fused), *net.ops[1:]))
    x = images((2, 3, 4, 4))
    torch.testing.assert_close(net.build()(x), other.build()(x))


def test_in_place_only_where_nothing_else_needs_the_value():
    ops = (
        op("conv", 0, channels=1, kernel=1),
        op("relu", 1),
        op("sum", 2, 1),
        op("flatten", 3),
        op("linear", 4, features=2),
    )
    source = Net((1, 4, 4), ops).source("inplace")
    assert "inplace=True" not in source
    straight = Net((1, 4, 4), (*ops[:2], op("flatten", 2), op("linear", 3, features=2)))
    assert "nn.ReLU(inplace=True)" in straight.source("inplace")
    assert "inplace=True" not in Net((1, 4, 4), (op("relu", 0), op("flatten", 1))).source("inplace")


def test_one_module_for_equal_operations():
    ops = (op("conv", 0, channels=1, kernel=1), op("relu", 1), op("conv", 2, channels=1, kernel=1), op("relu", 3))
    source = Net((1, 4, 4), (*ops, op("flatten", 4), op("linear", 5, features=2))).source("reused")
    assert source.count("nn.ReLU()") == 1
    assert source.count("self.relu2(") == 2
    assert source.count("nn.Conv2d(") == 2


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no operation is called 'convolution'"):
        op("convolution", 0)
    with pytest.raises(ValueError, match="writing must be one of"):
        one_of("relu").source("prose")
    with pytest.raises(ValueError, match="kind must be one of"):
        images((1, 1, 2, 2), kind="noise")
    with pytest.raises(TypeError, match="cannot draw weights for Bilinear"):
        seed_weights(torch.nn.Bilinear(2, 2, 2), 0)


@quick
@given(cases())
def test_printed_code_runs_and_is_what_was_tested(case):
    namespace: dict = {}
    exec(compile(case.code(), "printed", "exec"), namespace)
    model, inputs, target = case.arguments()
    assert torch.equal(namespace["inputs"], inputs)
    with torch.no_grad():
        assert torch.equal(namespace["model"](inputs), model(inputs))
    assert namespace["target"] == target if isinstance(target, Unit) else torch.equal(namespace["target"], target)


def test_everything_is_drawn():
    drawn = collections.Counter()
    maps = collections.Counter()

    @hypothesis.seed(0)
    @settings(quick, max_examples=1500, derandomize=False)
    @given(cases())
    def draw(case):
        drawn.update({each.kind for each in case.net.ops})
        drawn[case.writing] += 1
        drawn[case.images.kind] += 1
        drawn["unit" if isinstance(case.target, Unit) else "class"] += 1
        for each in case.net.ops:
            if each.get("kernel") is not None:
                kernel, stride = each.pair("kernel"), each.pair("stride", 1)
                drawn[f"{each.kind} with gaps"] += stride[0] > kernel[0] or stride[1] > kernel[1]
                drawn[f"rectangular {each.kind}"] += kernel[0] != kernel[1]
            drawn[f"{each.kind} without bias"] += not each.get("bias", True)
            drawn["padding not counted"] += not each.get("include", True)
            if "pool" in each.kind:
                drawn["overlap"] += each.pair("stride", 9) < each.pair("kernel", 0)
                drawn.update({name for name in ("padding", "ceil") if each.get(name)})
                drawn["dilated pool"] += each.get("dilation", 1) > 1
            if each.kind == "conv":
                drawn["grouped"] += each.get("groups", 1) > 1
                drawn["strided"] += max(each.pair("stride", 1)) > 1
                drawn["dilated"] += each.get("dilation", 1) > 1

    @hypothesis.seed(0)
    @settings(quick, max_examples=400, derandomize=False)
    @given(cases())
    def explain(case):
        for rule in ("guided_backprop", "deconvnet"):
            maps[rule] += bool((reference.explain(case, rule).flatten(1).abs().amax(1) > 0).all())

    draw()
    explain()
    wanted = {*KINDS, *WRITINGS, "normal", "positive", "levels", "unit", "class", "overlap", "padding", "ceil"}
    wanted |= {"dilated pool", "grouped", "strided", "dilated", "padding not counted"}
    wanted |= {f"{kind} with gaps" for kind in ("conv", "max_pool", "avg_pool")}
    wanted |= {f"rectangular {kind}" for kind in ("conv", "max_pool", "avg_pool")}
    wanted |= {f"{kind} without bias" for kind in ("conv", "linear")}
    assert {name for name in wanted if drawn[name] < 3} == set()  # of 1500
    assert min(maps.values()) > 380  # few networks are dead


def test_without_leaves_out():
    @quick
    @given(networks(without=(*RECTIFIERS, "rectifier", "conv_rectifier", "gate", "squeeze_excite")))
    def draw(net):
        assert not net.roles() & {"rectifier", "gate"}

    draw()


def test_shrinks_to_a_small_network():
    found: list[Case] = []

    @settings(database=None, derandomize=True, deadline=None, max_examples=300, report_multiple_bugs=False)
    @given(cases())
    def never_a_max_pool(case):
        if "max_pool" in case.net.roles():
            found.append(case)
            raise AssertionError

    with pytest.raises(AssertionError):
        never_a_max_pool()
    smallest = found[-1]
    assert [each.kind for each in smallest.net.ops] == ["max_pool", "flatten", "linear"]
    assert smallest.images == Images()
    assert smallest.writing == "modules"
    assert smallest.target == (0,)


def test_draws_are_the_same_for_one_seed():
    def draw(seed):
        found = []

        @hypothesis.seed(seed)
        @settings(quick, derandomize=False, max_examples=20)
        @given(cases())
        def note(case):
            found.append(case)

        note()
        return found

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_rectifiers_and_gates_are_all_there():
    names = "relu relu6 hardtanh leaky_relu prelu rrelu elu selu celu gelu gelu_tanh silu mish hardswish softplus"
    assert set(RECTIFIERS) >= {*names.split(), "swish", "hard_mish", "quick_gelu"}
    assert set(GATES) >= {"sigmoid", "hardsigmoid", "tanh", "softmax"}


def test_the_reference_by_hand():
    # x = (1, -2 / 3, -4), one ReLU, weights of the head a, b, c, d as drawn: the rules differ as defined
    net = Net((1, 2, 2), (op("relu", 0), op("flatten", 1), op("linear", 2, features=1)), seed=5)
    weights = net.build().linear3.weight.detach().reshape(1, 1, 2, 2)
    x = images((1, 1, 2, 2), seed=3)
    case = Case(net, images=Images(1, 3), target=(0,))
    torch.testing.assert_close(reference.explain(case, "gradient"), weights * (x > 0))
    torch.testing.assert_close(reference.explain(case, "guided_backprop"), weights.clamp(min=0) * (x > 0))
    torch.testing.assert_close(reference.explain(case, "deconvnet"), weights.clamp(min=0))
    assert (x < 0).any()
    assert (weights < 0).any()
