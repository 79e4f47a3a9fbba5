"""Mining against brute force: every activation kept and sorted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attribkit.datasets import ImageSource, open_images
from attribkit.errors import ImageError, InputError, ModelError, UnknownNameError
from attribkit.features import mining
from attribkit.features._topk import Top
from attribkit.features.mining import COMPUTE_BATCH, mine
from attribkit.models import zfnet

HERE = Path(__file__).parent
LAYERS = ["conv1", "relu1", "pool1", "norm1", "conv2", "pool2", "norm2", "conv3", "relu4", "conv5", "pool5", "fc6"]
LAYERS += ["relu7", "fc8"]


class Noise(ImageSource):
    """Images of noise, some of them twice; those in ``bad`` cannot be read."""

    def __init__(self, count, size=64, bad=()):
        self.name, self.size, self.bad = "noise", size, set(bad)
        self.ids = tuple(f"image {i}" for i in range(count))

    def load(self, index):
        if index in self.bad:
            raise ImageError(f"image {index}: is damaged")
        numbers = np.random.default_rng(index // 3 if index % 5 == 0 else index)
        return Image.fromarray(numbers.integers(0, 256, (self.size, self.size), dtype=np.uint8))


def preprocess(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy())[None] / 64 - 2


def small_zfnet():
    torch.manual_seed(0)
    model = zfnet(5, in_chans=1, img_size=64, width=0.05)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def brute_force(model, source, layers, top=9):
    """Return {layer: (values, images, positions)} by keeping every image's every activation."""
    kept = {layer: [] for layer in layers}
    modules = dict(model.named_modules())
    handles = [
        modules[n].register_forward_hook(lambda m, a, out, n=n: kept[n].append(out.clone().reshape(*out.shape[:2], -1)))
        for n in layers
    ]
    with torch.no_grad():
        for start in range(0, len(source), COMPUTE_BATCH):
            batch = torch.zeros(COMPUTE_BATCH, 1, source.size, source.size)
            for i in range(start, min(start + COMPUTE_BATCH, len(source))):
                if i not in source.bad:
                    batch[i - start] = preprocess(source.load(i))
            model(batch)
    for handle in handles:
        handle.remove()
    found = {}
    for layer, parts in kept.items():
        maps = torch.cat(parts)[: len(source)]
        rows = []
        for channel in range(maps.shape[1]):
            everything = [
                (-value, image, position)
                for image in range(len(source))
                if image not in source.bad
                for value, position in [min((-v, p) for p, v in enumerate(maps[image, channel].tolist()))]
                for value in [-value]
            ]
            rows.append(sorted(everything)[:top])
        found[layer] = rows
    return found


def same(mined, expected):
    for layer, rows in expected.items():
        top = mined.layers[layer].top
        for channel, row in enumerate(rows):
            got = list(
                zip(
                    (-top.values[channel]).tolist(),
                    *(t[channel].tolist() for t in (top.images, top.positions)),
                    strict=True,
                )
            )
            assert got[: len(row)] == row, (layer, channel)
            assert all(image == -1 for _, image, _ in got[len(row) :])


def equal(a, b):
    assert a.layers.keys() == b.layers.keys()
    assert a.skipped == b.skipped
    for name, layer in a.layers.items():
        for part in ("values", "images", "positions"):
            assert torch.equal(getattr(layer.top, part), getattr(b.layers[name].top, part)), (name, part)


def test_every_layer_of_zfnet_equals_brute_force_with_any_batch_size(one_thread):
    model, source = small_zfnet(), Noise(150, bad=(7, 148))
    expected = brute_force(model, source, LAYERS)
    first = mine(model, source, LAYERS, preprocess=preprocess)
    same(first, expected)
    assert first.skipped == ((7, "image 7: is damaged"), (148, "image 148: is damaged"))
    for batch_size in (1, 16, 37, 1000):
        equal(first, mine(model, source, LAYERS, preprocess=preprocess, batch_size=batch_size))
    equal(first, mine(model, source, LAYERS, preprocess=preprocess, batch_size=10, workers=2))


def test_ties_go_to_the_first_image_and_its_first_position(one_thread):
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU())
    model[0].weight.data[:] = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)  # the second map is never active

    class Flat(Noise):
        def load(self, index):
            pixels = np.full((4, 4), 10, dtype=np.uint8)
            pixels[1, 2:] = pixels[3, 0] = 200 if index % 2 else 100
            return Image.fromarray(pixels)

    mined = mine(model, Flat(45), ["1"], preprocess=lambda im: torch.from_numpy(np.array(im, np.float32))[None])
    top = mined.layers["1"].top
    assert top.images.tolist() == [list(range(1, 18, 2)), list(range(9))]
    assert top.positions.tolist() == [[6] * 9, [0] * 9]
    assert next(mined.layers["1"].hits(0)).position == (1, 2)


def test_merging_the_same_again_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (3, 20), generator=generator).float()
    images = torch.arange(20).expand(3, 20)
    all_at_once = Top.empty(3, 5, torch.float32).merged(Top(values, images, images))
    twice = all_at_once.merged(all_at_once).merged(Top(values[:, 5:9], images[:, 5:9], images[:, 5:9]))
    expected = [sorted(range(20), key=lambda i: (-values[row, i], i))[:5] for row in range(3)]
    assert all_at_once.images.tolist() == twice.images.tolist() == expected
    late = Top.empty(3, 5, torch.float32)
    for start in (15, 5, 0, 10):  # in any order
        part = slice(start, start + 5)
        late = late.merged(Top(values[:, part], images[:, part], images[:, part]))
    assert late.images.tolist() == expected


@pytest.mark.parametrize(("shape", "layout"), [((3, 4, 5), "NCHW"), ((4, 5, 3), "NHWC"), ((7, 3), "NTC"), ((3,), "NC")])
def test_layouts(shape, layout, one_thread):
    class Fixed(nn.Module):
        """Its linear layer, or convolution, keeps the values; the image decides which sample's."""

        def __init__(self):
            super().__init__()
            self.op = nn.Conv2d(3, 3, 1, bias=False) if layout == "NCHW" else nn.Linear(3, 3, bias=False)
            self.op.weight.data = torch.eye(3).reshape(self.op.weight.shape)

        def forward(self, x):
            count = int(np.prod(shape))
            return self.op(x.flatten(1)[:, :count].reshape(len(x), *shape))

    source = Noise(20, size=8)
    mined = mine(Fixed(), source, ["op"], preprocess=preprocess).layers["op"]
    assert mined.layout == layout
    values = torch.stack(
        [preprocess(source.load(i)).flatten()[: int(np.prod(shape))].reshape(shape) for i in range(20)]
    )
    maps = values.movedim(layout.index("C"), 1).reshape(20, 3, -1)
    for channel in range(3):
        best = sorted((-float(maps[i, channel].max()), i, int(maps[i, channel].argmax())) for i in range(20))[:9]
        top = mined.top
        parts = (-top.values[channel], top.images[channel], top.positions[channel])
        got = list(zip(*(part.tolist() for part in parts), strict=True))
        assert got == best


def test_a_state_of_another_configuration_is_refused(tmp_path, one_thread):
    model, source = small_zfnet(), Noise(20)
    first = mine(model, source, ["conv1"], preprocess=preprocess, state=tmp_path)
    again = mine(model, source, ["conv1"], preprocess=lambda image: 1 / 0, state=tmp_path)  # nothing is left to do
    equal(first, again)
    with pytest.raises(InputError, match=r"another run: layers was \['conv1'\] and is \['conv2'\]"):
        mine(model, source, ["conv2"], preprocess=preprocess, state=tmp_path)
    with pytest.raises(InputError, match="top was 9 and is 3"):
        mine(model, source, ["conv1"], preprocess=preprocess, top=3, state=tmp_path)
    with torch.no_grad():
        model.conv1.bias[0] += 1
    with pytest.raises(InputError, match="weights was"):
        mine(model, source, ["conv1"], preprocess=preprocess, state=tmp_path)
    with pytest.raises(UnknownNameError, match="conv9"):
        mine(model, source, ["conv9"], preprocess=preprocess, state=tmp_path / "..")
    assert not list(tmp_path.parent.glob("state-*"))  # what failed at once leaves no state behind
    (tmp_path / "state-0.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not the state"):
        mine(model, source, ["conv1"], preprocess=preprocess, state=tmp_path)


def test_an_interruption_keeps_what_was_done(tmp_path, monkeypatch, one_thread):
    model, source = small_zfnet(), Noise(100)
    whole = mine(model, source, ["conv2", "fc6"], preprocess=preprocess)
    calls = []

    def stops(image):
        calls.append(0)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return preprocess(image)

    with pytest.raises(KeyboardInterrupt):
        mine(model, source, ["conv2", "fc6"], preprocess=stops, batch_size=1, state=tmp_path)
    rest = []
    resumed = mine(
        model, source, ["conv2", "fc6"], preprocess=lambda im: (rest.append(0), preprocess(im))[1], state=tmp_path
    )
    equal(whole, resumed)
    assert len(rest) == 100 - 3 * COMPUTE_BATCH


SCRIPT = """
import json, sys, time, torch
sys.path.insert(0, {here!r})
import test_mining as t
from attribkit.features import mining
torch.set_num_threads(1)
mining.SAVE_SECONDS = 0.0
slow = float(sys.argv[2])
def preprocess(image):
    time.sleep(slow)
    return t.preprocess(image)
with mining.processes() as rank:
    found = mining.mine(t.small_zfnet(), t.Noise(120, bad=(7,)), ["conv1", "pool5", "fc8"], preprocess=preprocess,
                        state=sys.argv[1] or None)
if rank == 0:
    print(json.dumps([found.to_dict()["layers"], found.to_dict()["skipped"]]))
"""


def start(state, slow=0.0, ranks=1, script=SCRIPT):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={ranks}"]
    file = Path(state) / "run.py"
    file.write_text(script.format(here=str(HERE)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [*launcher, str(file), str(state), str(slow)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_two_processes_find_what_one_finds(tmp_path, one_thread):
    found = mine(small_zfnet(), Noise(120, bad=(7,)), ["conv1", "pool5", "fc8"], preprocess=preprocess).to_dict()
    two = finished(start(tmp_path, ranks=2))
    assert two == json.loads(json.dumps([found["layers"], found["skipped"]]))
    assert two[1] == [{"image": "image 7", "reason": "image 7: is damaged"}]


KILLS = """
import os, random, signal, time
from pathlib import Path
state = Path(sys.argv[1]) / "state-0.safetensors"
moments = random.Random(0)
for _ in range(5):
    before = state.stat().st_mtime_ns if state.exists() else 0
    child = os.fork()
    if child == 0:
        mining.mine(t.small_zfnet(), t.Noise(120, bad=(7,)), ["conv1", "pool5", "fc8"], preprocess=preprocess,
                    state=sys.argv[1])
        os._exit(0)
    while not state.exists() or state.stat().st_mtime_ns == before:
        time.sleep(0.001)
    time.sleep(moments.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    print("killed by", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
slow = 0.0
"""


def test_killed_at_any_moment_it_goes_on(tmp_path, one_thread):
    found = mine(small_zfnet(), Noise(120, bad=(7,)), ["conv1", "pool5", "fc8"], preprocess=preprocess).to_dict()
    setup, rest = SCRIPT.split("with mining.processes")
    process = start(tmp_path, slow=0.005, script=setup + KILLS + "with mining.processes" + rest)
    assert finished(process) == json.loads(json.dumps([found["layers"], found["skipped"]]))


def test_bad_input(one_thread):
    model, source = small_zfnet(), Noise(4)
    for wrong, message in (
        ({"top": 0}, "top must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"channels": [99]}, "channel 99 is out of range: layer 'conv1' has"),
        ({"channels": []}, "channels is empty"),
        ({"channels": "some"}, "channels must be 'all'"),
        ({"preprocess": None}, "preprocess is needed"),
    ):
        with pytest.raises(InputError, match=message):
            mine(model, source, ["conv1"], **{"preprocess": preprocess, **wrong})
    with pytest.raises(UnknownNameError, match="conv9"):
        mine(model, source, ["conv9"], preprocess=preprocess)
    with pytest.raises(InputError, match="layers must be a list"):
        mine(model, source, "conv1", preprocess=preprocess)
    with pytest.raises(ModelError, match="not one of its 4 images"):
        mine(model, Noise(4, bad=range(4)), ["conv1"], preprocess=preprocess)
    with pytest.raises(InputError, match=r"image 1: preprocess returned \(1, 32, 64\)"):
        mine(model, source, ["conv1"], preprocess=lambda im, n=[]: (n.append(0), preprocess(im)[:, : 64 // len(n)])[1])


def test_activations_that_are_no_numbers_are_left_out(one_thread):
    model = nn.Sequential(nn.Conv2d(1, 2, 3))

    def poisoned(image):
        found = preprocess(image)
        return found * float("inf") if found[0, 0, 0] == preprocess(Noise(9).load(3))[0, 0, 0] else found

    mined = mine(model, Noise(9), ["0"], preprocess=poisoned)
    assert [index for index, _ in mined.skipped] == [3]
    assert 3 not in mined.layers["0"].top.images


def test_only_the_channels_asked_for(one_thread):
    model, source = small_zfnet(), Noise(30)
    everything = mine(model, source, ["conv2"], preprocess=preprocess).layers["conv2"]
    some = mine(model, source, ["conv2"], preprocess=preprocess, channels=[5, 2]).layers["conv2"]
    assert some.channels == (5, 2)
    assert torch.equal(some.top.images, everything.top.images[[5, 2]])


def test_the_shipped_sample_opens_by_name(one_thread):
    source = open_images("fashion-sample")
    model = nn.Sequential(nn.Conv2d(1, 1, 5))
    assert len(mining.mine(model, "fashion-sample", ["0"], preprocess=preprocess).ids) == len(source)
