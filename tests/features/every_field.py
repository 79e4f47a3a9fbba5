"""Compare the fields of every layer of four networks with the support of the gradient: a command, minutes long.

``python tests/features/every_field.py [NETWORK …]`` writes a line a network and fails where a box differs.
"""

import sys

import torch
import torchvision
from test_fields import monotone, support, thin

import attribkit as ak
from attribkit.features.fields import receptive_fields
from attribkit.models import zfnet

NETWORKS = {
    "zfnet": (lambda: zfnet(10, width=0.05), 224),
    "vgg11": (lambda: torchvision.models.vgg11(num_classes=5, init_weights=False).apply(thin), 192),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 224),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False), 224),
}


def places(field):
    """Return the corners, the middle and some positions along the border and inside."""
    rows, columns = field.grid.rows, field.grid.columns
    found = {0, 1, rows // 3, rows // 2, rows - 2, rows - 1} & set(range(rows))
    across = {0, columns // 2, columns - 1}
    return sorted((row, column) for row in found for column in across)


def main(names):
    """Check the networks of these names and return how many boxes differ."""
    wrong = 0
    for name in names:
        torch.manual_seed(0)
        build, size = NETWORKS[name]
        model = build().eval()
        known = ak.inspect(model, torch.rand(1, 3, size, size)).layers
        layers = [path for path, module in model.named_modules() if path in known]
        fields = receptive_fields(model, (3, size, size), layers)
        positive = monotone(model)
        x = torch.rand(1, 3, size, size, dtype=torch.float64) + 0.5
        boxes = within = 0
        for layer, field in fields.items():
            within += not field.whole
            for place in [(0, 0)] if field.whole else places(field):
                boxes += 1
                found = support(positive, x, layer, place)
                if field.box(place) != found:
                    wrong += 1
                    print(f"{name} {layer} {place}: {field.box(place)}, the support is {found}")
        smaller = f"{within} of them with a field smaller than the image"
        print(f"{name}: {len(layers)} layers, {smaller}, {boxes} boxes compared", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:] or list(NETWORKS)) else 0)
