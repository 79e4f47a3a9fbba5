# The source of what-does-this-unit-see.ipynb, which docs/make_tutorials.py makes and runs.
# ruff: noqa: B018

# %% [markdown]
# # What does this unit see?
#
# Inside a convolutional network every layer computes *feature maps*: pictures of where some pattern was found.
# Nobody chose these patterns; training did. Zeiler & Fergus (2014) asked what they are. Their answer: take a
# **unit** (one element of one feature map), keep its activation, set all others to zero, and carry it back to the
# pixels. What comes out is the unit's **projection**.
#
# The network here is `zfnet-fashion`: their network, made small, trained on pictures of clothes. Weights and a
# thousand pictures come with attribkit.

# %%
import io
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import attribkit as ak
from attribkit.datasets import open_images
from attribkit.features import figure, mine, receptive_field
from attribkit.report import figures

loaded = ak.load_model("zfnet-fashion")
images = open_images("fashion-sample")
loaded

# %%
image = images.load(0)
x = loaded.preprocess(image)[None]
with torch.no_grad():
    probabilities = loaded.model(x).softmax(1)[0]
print(f"{probabilities.max():.0%} {loaded.labels[probabilities.argmax()]}; it is {images.labels[images.label(0)]}")
image.resize((224, 224))

# %% [markdown]
# ## Which layers are there?
#
# `inspect` runs the model once and lists every operation, with the shape of what it puts out. `useful_layers` are
# those worth a look first.

# %%
found = ak.inspect(loaded.model, x)
print({layer: found.shapes[layer] for layer in found.useful_layers})

# %% [markdown]
# We take `relu2`: 64 feature maps, halfway up. Which of them does this boot excite most? `project` answers for
# all of them from a single forward pass; its scores are the activations.

# %%
LAYER = "relu2"
channels = found.shapes[LAYER][1]
everything = ak.project(loaded.model, x, LAYER, channels=range(channels))
strongest = everything.scores[0].topk(3).indices.tolist()
print("the most active feature maps:", strongest)

# %% [markdown]
# ## Their projections

# %%
ak.project(loaded.model, x, LAYER, channels=strongest)

# %% [markdown]
# Each is a small spot, because a unit of this layer sees only a part of the picture, its **receptive field**; and
# in the spot there is a piece of the boot's outline or sole. Red and blue are the two sides of an edge, brighter
# and darker.
#
# ## One picture is not enough
#
# What does the first of these feature maps see *in general*? Go through all thousand pictures, and keep the nine
# that excite it most. `mine` does so for every feature map of a layer in one pass:

# %%
channel = strongest[0]
mined = mine(loaded, images, [LAYER], progress=True)
hits = list(mined.layers[LAYER].hits(channel))
for hit in hits[:4]:
    print(f"{hit.value:.0f} at {hit.position} of picture {hit.image}: {images.labels[images.label(hit.image)]}")

# %% [markdown]
# Where does the first of these units look? Its receptive field follows from the layers below, exactly:

# %%
best = hits[0]
box = receptive_field(loaded.model, loaded.input_size, LAYER).box(best.position)
print(f"rows {box.top} to {box.bottom}, columns {box.left} to {box.right} of {loaded.input_size[1]}")

x = loaded.preprocess(images.load(best.image))[None]
view = figures.model_view(loaded.denormalize(x[0]).numpy())
ImageDraw.Draw(view).rectangle((box.left, box.top, box.right - 1, box.bottom - 1), outline="red")
view.resize((224, 224), Image.Resampling.NEAREST)

# %% [markdown]
# Now the patches of all nine beside their projections. `figure` draws this, the paper's Fig. 2, for the most
# active maps of a layer. On the left of each block the nine projections (grey is zero), on the right the patches
# that caused them.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = figure(Path(folder, "relu2.png"), loaded, images, LAYER, maps=6)
    sheet = Image.open(io.BytesIO(path.read_bytes()))
sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)

# %% [markdown]
# The patches of a block differ more than their projections do. That is the point: the projection shows only
# **what they have in common**, such as an edge of one direction or a texture, and leaves out what the unit
# ignores.
#
# ## Check it
#
# A projection is a picture of a computation, not a proof. Turn the question round: cover parts of the photograph,
# and look when the unit falls silent. Every method takes a unit as its target.

# %%
unit = ak.Unit(LAYER, channel, best.position)
projection = ak.attribute(loaded.model, x, "deconvnet", target=unit)
covered = ak.attribute(loaded.model, x, "occlusion", target=unit, window=8, stride=4)
inside = torch.zeros(loaded.input_size[1:], dtype=torch.bool)
inside[box.top : box.bottom, box.left : box.right] = True
for result in (projection, covered):
    strength = result.heatmap()[0].abs()
    print(f"{result.method}: {float(strength[inside].sum() / strength.sum()):.0%} lies in the receptive field")

# %%
covered

# %% [markdown]
# For occlusion the share is below 100 % only because a window that touches the field reaches beyond it.
#
# ## And now
#
# - Every feature map of several layers, as pages to browse: `attribkit features --model zfnet-fashion --data
# fashion-sample --layer pool1 --layer pool5 --out features`
# - Click through the feature maps of any model: `attribkit app`.
# - How a feature grew during training, what shifts and turns it bears, what it stands for: the pages on the
# paper.
