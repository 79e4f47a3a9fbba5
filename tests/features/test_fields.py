"""Receptive fields against the support of the gradient of a copy whose weights and signals are all positive."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import attribkit as ak
from attribkit.errors import UnknownNameError
from attribkit.features.fields import Box, receptive_field, receptive_fields
from attribkit.models import zfnet


def monotone(model):
    """Return a copy whose every weight is one, whose max pools average and whose signals are all positive."""
    model = copy.deepcopy(model).double().eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1e-2)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                sizes = (child.kernel_size, child.stride, child.padding)
                setattr(parent, name, nn.AvgPool2d(*sizes, child.ceil_mode, count_include_pad=False))
            elif isinstance(child, nn.LocalResponseNorm):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.BatchNorm2d):
                child.running_mean.zero_()
                child.running_var.fill_(1.0)
    return model


def support(model, x, layer, position):
    """Return the bounding box of the pixels with a gradient of the unit's sum over channels."""
    x = x.clone().requires_grad_()
    caught = []
    module = dict(model.named_modules())[layer]
    handle = module.register_forward_hook(lambda m, args, out: caught.append(out.clone()))
    model(x)
    handle.remove()
    value = caught[0]
    unit = value.sum() if value.ndim == 2 else value[0, :, position[0], position[1]].sum()
    (gradient,) = torch.autograd.grad(unit, x)
    seen = gradient[0].sum(0) != 0
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


MODELS = {
    "zfnet": (lambda: zfnet(10, img_size=96, width=0.05), 96),
    "vgg11": (lambda: torchvision.models.vgg11(num_classes=5, init_weights=False).apply(thin), 64),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 72),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False), 80),
}


def thin(module):
    """Leave vgg's head small: its layers see the whole image in any case."""
    if isinstance(module, nn.Linear) and module.in_features > 4096:
        module.weight, module.out_features = nn.Parameter(torch.ones(16, module.in_features)), 16
        module.bias = nn.Parameter(torch.ones(16))
    elif isinstance(module, nn.Linear) and module.in_features == 4096:
        module.weight, module.bias = (
            nn.Parameter(torch.ones(16, 4096)[:, :16].contiguous()),
            nn.Parameter(torch.ones(16)),
        )


@pytest.mark.parametrize("name", MODELS)
def test_boxes_equal_the_support_of_the_gradient(name, one_thread):
    torch.manual_seed(0)
    build, size = MODELS[name]
    model = build().eval()
    known = ak.inspect(model, torch.rand(1, 3, size, size)).layers
    layers = [n for n, m in model.named_modules() if n in known and not list(m.children())]
    if name == "googlenet":  # every layer of it: `make fields`
        layers = [n for n in layers if n.startswith(("conv", "maxpool", "inception3a", "inception4a.branch3"))]
        layers += ["inception3a", "inception3b.branch3", "inception4a"]
    fields = receptive_fields(model, (3, size, size), layers)
    positive = monotone(model)
    x = torch.rand(1, 3, size, size, dtype=torch.float64) + 0.5
    checked = 0
    for layer, field in fields.items():
        rows, columns = field.grid.rows, field.grid.columns
        if layer in ("classifier.6", "fc8", "fc") or field.whole:
            places = [(0, 0)]
        else:
            places = dict.fromkeys(
                [(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1), (rows - 1, 1 % columns)]
            )
        for place in places:
            assert field.box(place) == support(positive, x, layer, place), (layer, place)
            checked += 1
    assert checked > len(layers)


def test_what_is_known_of_zfnet():
    fields = receptive_fields(zfnet(10), (3, 224, 224), ["conv1", "pool1", "conv2", "conv5", "pool5", "fc6"])
    sizes = {"conv1": 7, "pool1": 11, "conv2": 27, "conv5": 139, "pool5": 171}
    assert {name: fields[name].size for name in sizes} == {name: (size, size) for name, size in sizes.items()}
    assert fields["conv1"].stride == (2, 2)
    assert fields["conv1"].offset == (-1, -1)
    assert fields["conv1"].box((0, 0)) == (0, 0, 6, 6)
    assert fields["conv1"].box((0, 0), clipped=False) == (-1, -1, 6, 6)
    assert fields["fc6"].whole
    assert fields["fc6"].stride is None
    assert all(f.unknown == () for f in fields.values())
    with pytest.raises(UnknownNameError, match="conv9"):
        receptive_field(zfnet(10, width=0.05), (3, 224, 224), "conv9")


class Branches(nn.Module):
    """A short and a long branch, concatenated; then gates over the whole map; then what nobody knows."""

    def __init__(self):
        super().__init__()
        self.short, self.long, self.join = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 5, padding=2), nn.Identity()
        self.gated, self.shifted, self.strange = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.join(torch.cat([self.short(x), self.long(x)], 1))
        self.shifted(torch.roll(x, 1, dims=3))
        self.gated(x * x.mean((2, 3), keepdim=True).sigmoid())
        return self.strange(torch.fft.fft2(x).real)


def test_branches_gates_shifts_and_the_unknown():
    fields = receptive_fields(Branches(), (3, 12, 12), ["join", "shifted", "gated", "strange"])
    join = fields["join"]
    assert join.box((6, 6), 0) == (6, 6, 7, 7)
    assert join.box((6, 6), 3) == join.box((6, 6)) == (4, 4, 9, 9)
    assert fields["shifted"].box((6, 6), 0) == (6, 5, 7, 6)
    assert fields["shifted"].box((6, 0), 0) == (6, 11, 7, 12)
    assert fields["gated"].whole
    assert fields["gated"].unknown == ()
    assert fields["strange"].whole
    assert "fft_fft2" in fields["strange"].unknown or "fft2" in str(fields["strange"].unknown)


def test_tokens_and_windows(one_thread):
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2).eval()
    fields = receptive_fields(vit, (3, 224, 224), ["patch_embed", "blocks.0"])
    assert fields["patch_embed"].box((1, 2)) == (16, 32, 32, 48)
    assert fields["blocks.0"].whole
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(2,), num_heads=(2,)).eval()
    field = receptive_field(swin, (3, 224, 224), "layers.0.blocks.0")
    assert field.box((0, 0)) == (0, 0, 28, 28)
    assert field.box((8, 20)) == (28, 56, 56, 84)
    assert field.unknown == ()
