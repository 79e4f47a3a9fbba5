"""Modules for the rectifiers' tests: subclasses with forwards of their own, and fused classes with their formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import (
    BatchNormAct2d,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    FrozenBatchNormAct2d,
    GroupNorm1Act,
    GroupNormAct,
    LayerNormAct2d,
    RmsNormAct2d,
    evo_norm,
)
from timm.layers.filter_response_norm import inv_instance_rms
from timm.models.metaformer import SquaredReLU, StarReLU
from timm.models.nfnet import GammaAct
from torch import nn


class CallsF(nn.ReLU):
    def forward(self, input):
        return F.relu(input * 1.0)


class CallsSuper(nn.ReLU):
    def forward(self, input):
        return super().forward(input)


class CallsTensorMethod(nn.ReLU):
    def forward(self, input):
        return input.relu()


class ByClamp(nn.ReLU):
    def forward(self, input):
        return input.clamp(min=0)


class ByFunction(nn.ReLU):
    """A rectifier by name, computed by an autograd function whose forward nothing can see into."""

    def forward(self, input):
        return _Rectify.apply(input)


class OwnBackward(nn.ReLU):
    """A forward set on the instance."""

    def __init__(self):
        super().__init__()
        self.forward = lambda input: _Rectify.apply(input)


class LeakyAutogradFunction(nn.LeakyReLU):
    def forward(self, input):
        return _Leak.apply(input)


class SiLUFromParts(nn.SiLU):
    def forward(self, input):
        return input * torch.sigmoid(input)


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * (x > 0)

    @staticmethod
    def backward(ctx, signal):
        (x,) = ctx.saved_tensors
        return signal * (x > 0)


class _Leak(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.01 * x)

    @staticmethod
    def backward(ctx, signal):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, signal, 0.01 * signal)


def _stir(module):
    """Draw a norm's statistics and parameters, so that nothing is 0 or 1 by luck."""
    torch.manual_seed(8)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5) if "var" in name else torch.nn.init.normal_(value, 0.3, 0.5)
    return module


def _same(module, x):
    return x


def _batch_norm(m, x):
    return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)


def _frozen(m, x):
    scale = m.weight / (m.running_var + m.eps).sqrt()
    return x * scale[:, None, None] + (m.bias - m.running_mean * scale)[:, None, None]


def _group_norm(m, x):
    return F.group_norm(x, m.num_groups, m.weight, m.bias, m.eps)


def _layer_norm(m, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (var + m.eps).sqrt() * m.weight[:, None, None] + m.bias[:, None, None]


def _rms_norm(m, x):
    return x / (x.square().mean(1, keepdim=True) + m.eps).sqrt() * m.weight[:, None, None]


def _affine(m, x):
    return x * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1)


def _response_norm(m, x):
    return _affine(m, x * inv_instance_rms(x, m.eps))


def _square(m, x):
    return x * x


def _star(m, x):
    return m.scale * x * x + m.bias


def _gamma(m, x):
    return x * m.gamma


def _bare(m, x):
    return type(m).forward(m, x)


def fused():
    """Return name -> (module, ordinary part before, rectifier or None, ordinary part after, tolerance)."""
    float32 = 1e-5  # these norms compute their statistics in float32
    return {
        "BatchNormAct2d": (lambda: _stir(BatchNormAct2d(6)), _batch_norm, "relu", _same, 1e-10),
        "BatchNormAct2d, SiLU": (
            lambda: _stir(BatchNormAct2d(6, act_layer=nn.SiLU, inplace=False)),
            _batch_norm,
            "silu",
            _same,
            1e-10,
        ),
        "BatchNormAct2d, act by name": (
            lambda: _stir(BatchNormAct2d(6, act_layer="hard_swish")),
            _batch_norm,
            "hardswish",
            _same,
            1e-10,
        ),
        "FrozenBatchNormAct2d": (lambda: _stir(FrozenBatchNormAct2d(6)), _frozen, "relu", _same, 1e-10),
        "GroupNormAct": (lambda: _stir(GroupNormAct(6, num_groups=3)), _group_norm, "relu", _same, 1e-10),
        "GroupNormAct, GELU": (
            lambda: _stir(GroupNormAct(6, num_groups=2, act_layer=nn.GELU)),
            _group_norm,
            "gelu",
            _same,
            1e-10,
        ),
        "GroupNorm1Act": (lambda: _stir(GroupNorm1Act(6)), _group_norm, "relu", _same, 1e-10),
        "LayerNormAct2d": (lambda: _stir(LayerNormAct2d(6)), _layer_norm, "relu", _same, 1e-9),
        "RmsNormAct2d": (lambda: _stir(RmsNormAct2d(6)), _rms_norm, "relu", _same, 1e-9),
        "FilterResponseNormAct2d": (
            lambda: _stir(FilterResponseNormAct2d(6)),
            _response_norm,
            "relu",
            _same,
            float32,
        ),
        "FilterResponseNormTlu2d": (lambda: _stir(FilterResponseNormTlu2d(6)), _bare, None, _same, float32),
        "EvoNorm2dB0": (lambda: _stir(evo_norm.EvoNorm2dB0(6)), _bare, None, _same, float32),
        "EvoNorm2dB1": (lambda: _stir(evo_norm.EvoNorm2dB1(6)), _bare, None, _same, float32),
        "EvoNorm2dS0": (lambda: _stir(evo_norm.EvoNorm2dS0(6, groups=3)), _bare, None, _same, float32),
        # with "relu" plain autograd itself fails: the multiplication in place changes what ReLU's derivative needs
        "GammaAct, gelu": (lambda: GammaAct("gelu", gamma=1.7), _same, "gelu", _gamma, 1e-10),
        "GammaAct, silu": (lambda: GammaAct("silu", gamma=1.7, inplace=True), _same, "silu", _gamma, 1e-10),
        "SquaredReLU": (SquaredReLU, _same, "relu", _square, 1e-10),
        "SquaredReLU, in place": (lambda: SquaredReLU(inplace=True), _same, "relu", _square, 1e-10),
        "StarReLU": (lambda: StarReLU(0.9, -0.4), _same, "relu", _star, 1e-10),
    }
