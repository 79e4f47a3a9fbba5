# The source of write-a-plugin.ipynb, which docs/make_tutorials.py makes and runs.
# ruff: noqa: B018, E402

# %% [markdown]
# # Write a method of your own
#
# A method is a class, often of ten lines. This notebook writes one, looks at it, has it **tested by a suite of
# property tests** that finds a claim that is too much, and ends with an installable plugin.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import attribkit as ak
from attribkit.images import read_image, sample_image_path

loaded = ak.load_model("timm/tf_efficientnet_lite0")
x = loaded.preprocess(read_image(sample_image_path()))[None]

# %% [markdown]
# ## The idea
#
# Guided backprop carries the score back to the pixels, and at each rectifier (ReLU and its relatives) lets only
# the positive part of the signal pass. What if the negative part passed too, only weaker?
#
# How a signal passes an operation is an **inverse layer**: a class with one method, `carry`. It takes the signal
# at the operation's output and returns it at its input. `site.plain(signal)` is the ordinary derivative there.


# %%
class DampedRectify(ak.InverseLayer):
    def carry(self, signal, site):
        return site.plain(signal.clamp(min=0) + 0.1 * signal.clamp(max=0))


class Damped(ak.InverseMethod):
    name = "damped"
    summary = "Guided backprop that lets a tenth of the negative signal pass"
    tags = {"inverse", "signed", "deterministic", "linear_in_seed"}
    inverse_layers = {"rectifier": DampedRectify()}


# %% [markdown]
# That is a whole method. The table says: at every rectifier, whatever class, function or in-place form it is
# written in, use `DampedRectify`; everywhere else the ordinary derivative holds. A class can be used as it is:

# %%
result = ak.attribute(loaded.model, x, method=Damped)
print(result.coverage)
result

# %% [markdown]
# ## Is it right?
#
# It looks plausible, which proves nothing. The **conformance kit** draws random networks and images, runs the
# method on them, and tests what must hold for every method (the map of an image does not depend on its neighbours
# in the batch, nothing is left behind on the model, …) and, beyond that, what the method's `tags` claim.

# %%
from attribkit.testing import CheckFailed, check_method, checks_for

try:
    check_method(Damped, examples=5)
except CheckFailed as failure:
    print(str(failure).strip().splitlines()[0])

# %% [markdown]
# A check failed. We claimed `linear_in_seed`: that the map of the sum of two scores is the sum of their maps.
# Backprop has that property, but ours treats positive and negative signals differently, so it has not. The full
# message holds the smallest network on which the claim is false, as a program to run.
#
# The fault is in the claim. What does hold: twice the score, twice the map.


# %%
class Damped(ak.InverseMethod):
    name = "damped"
    summary = "Guided backprop that lets a tenth of the negative signal pass"
    tags = {"inverse", "signed", "deterministic", "homogeneous"}
    inverse_layers = {"rectifier": DampedRectify()}


check_method(Damped, examples=5)
print(f"all {len(list(checks_for(Damped())))} checks passed")

# %% [markdown]
# ## Methods of another kind
#
# A method need not be a table. Anything that returns a tensor like `inputs` will do. `target.scores(model, x)` is
# the score to explain, for a class, a unit or a function alike; the keyword arguments are the method's options.


# %%
class SmoothGradient(ak.Method):
    name = "smooth"
    summary = "The gradient's mean over noisy copies (Smilkov et al. 2017)"
    tags = {"signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, *, copies=8, noise=0.1, seed=0):
        generator = torch.Generator().manual_seed(seed)  # its own: the caller's random numbers stay as they are
        total = torch.zeros_like(inputs)
        for _ in range(copies):
            shift = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64).to(inputs)
            noisy = (inputs.detach() + noise * shift).requires_grad_()
            total += torch.autograd.grad(target.scores(model, noisy).sum(), noisy)[0]
        return total / copies


check_method(SmoothGradient, examples=5)
ak.attribute(loaded.model, x, SmoothGradient, copies=4, noise=0.3)

# %% [markdown]
# Wrong options are refused by name, without a line from you:

# %%
try:
    ak.attribute(loaded.model, x, SmoothGradient, copys=4)
except ak.AttribkitError as error:
    print(error)

# %% [markdown]
# ## Make it a plugin
#
# To be found by its name, by everybody who installs it, a method needs a distribution with an entry point.
# `new-plugin` writes one, with tests that pass:

# %%
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "attribkit", "new-plugin", "damped", "--kind", "inverse"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    root = Path(folder, "attribkit-damped")
    print(*sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()), sep="\n")
    settings = (root / "pyproject.toml").read_text()
print()
print(settings[settings.index("[project.entry-points") :].split("\n\n")[0])

# %% [markdown]
# Put the two classes into its module, then:
#
# ```sh
# pip install './attribkit-damped[test]'
# attribkit check damped
# attribkit explain photograph.jpg --method damped,guided_backprop
# ```
#
# From then on `ak.attribute(model, x, "damped")` works, `attribkit methods` lists it with what it came with, and
# the report page shows it beside the others.
