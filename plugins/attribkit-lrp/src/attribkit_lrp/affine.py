"""A convolution or linear layer as the rules see it: z = W·x + b, a batch norm that follows merged into W and b."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class BatchNorms:
    """The batch norms met on one way back, by the tensor they normalised.

    The signal meets a batch norm before the convolution that fed it. Its scale and shift wait here under the address of
    its input; the convolution whose output lies there takes them. Both tensors are kept until the convolution is done,
    so that an address is that of one tensor.
    """

    def __init__(self):
        self._waiting = {}

    def put(self, tensor, scale, shift):
        """Note what a batch norm did to ``tensor``; a second batch norm on the same tensor undoes both."""
        place = self._place(tensor)
        self._waiting[place] = None if place in self._waiting else (scale, shift)

    def take(self, tensor):
        """Return scale and shift [C] of the batch norm on ``tensor``, None where there is none."""
        return self._waiting.pop(self._place(tensor), None)

    @staticmethod
    def _place(tensor):
        return tensor.data_ptr(), tuple(tensor.shape)


def scale_and_shift(params):
    """Return what a batch norm in eval mode multiplies by and adds, each [C]; None without running statistics."""
    mean, variance = params.get("running_mean"), params.get("running_var")
    if mean is None or variance is None:
        return None
    scale = (variance + params["eps"]).rsqrt()
    if params.get("weight") is not None:
        scale = scale * params["weight"]
    shift = -mean * scale
    if params.get("bias") is not None:
        shift = shift + params["bias"]
    return scale, shift


class Affine:
    """The operation of one site, with whatever weights a rule puts in the place of its own.

    Attributes
    ----------
    weight, bias : Tensor
        W and b, merged with a batch norm that follows; ``bias`` is None where there is none.
    z : Tensor
        W·x + b, of the site's output's shape.
    scale : Tensor or None
        What the batch norm multiplied by, shaped to be multiplied with ``z``.
    """

    def __init__(self, site, batch_norms):
        params = site.params
        self.shape = site.input_shapes[0]
        self.weight, self.bias = params["weight"].detach(), params.get("bias")
        self.z, self.scale = site.output, None
        names = ("stride", "padding", "output_padding", "dilation", "groups")
        self._settings = {name: params[name] for name in names if name in params}
        if site.kind == "linear":
            self._call, self._transposed = F.linear, False
        else:
            self._transposed = "output_padding" in self._settings
            table = _TRANSPOSED if self._transposed else _CONVOLUTIONS
            self._call = table[self.weight.ndim - 2]
        found = batch_norms.take(site.output) if batch_norms is not None else None
        if found is not None:
            self._merge(*found)

    def _merge(self, scale, shift):
        rest = self.z.ndim - 2
        self.scale = scale.view(-1, *[1] * rest)
        self.z = self.z * self.scale + shift.view(-1, *[1] * rest)
        self.bias = shift if self.bias is None else self.bias * scale + shift
        if self._transposed:  # [in, out / groups, …]: the groups' outputs follow each other
            groups = self._settings.get("groups", 1)
            per_group = scale.view(groups, 1, -1)
            shape = self.weight.shape
            weight = self.weight.view(groups, shape[0] // groups, shape[1], -1) * per_group[..., None]
            self.weight = weight.view(shape)
        else:
            self.weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))

    def forward(self, x, weight, bias=None):
        """Return weight·x + bias by the site's operation."""
        return self._call(x, weight, bias, **self._settings)

    def back(self, weight, signal):
        """Return weightᵀ·signal, of the input's shape."""
        with torch.enable_grad():
            x = weight.new_zeros(self.shape).requires_grad_()
            z = self.forward(x, weight)
        return torch.autograd.grad(z, x, signal)[0]
