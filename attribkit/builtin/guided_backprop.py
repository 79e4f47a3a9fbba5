"""Guided backpropagation."""

from attribkit.engine.layers import GatedRectify
from attribkit.method import InverseMethod


class GuidedBackprop(InverseMethod):
    """Backpropagation that also rectifies the signal at every rectifier (Springenberg et al. 2015, §3.4)."""

    name = "guided_backprop"
    summary = "Backprop that also rectifies the signal (Springenberg et al. 2015)"
    source = "Springenberg et al., Striving for Simplicity: The All Convolutional Net, ICLR 2015 workshop, §3.4"
    inverse_layers = {"rectifier": GatedRectify()}
