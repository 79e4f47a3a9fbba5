"""The deconvolutional network."""

from attribkit.engine.layers import PassThrough, Rectify, Unpool
from attribkit.method import InverseMethod


class Deconvnet(InverseMethod):
    """The deconvnet of Zeiler & Fergus 2014, §2.1.

    Rectifiers pass the positive part of the signal without a forward mask, max pools unpool through the recorded
    switches, contrast normalisation is skipped; convolutions, linear layers and batch norms apply their transposed
    weights or scale, which is their ordinary derivative. A unit's signal starts as its own activation, a class score's
    as 1.
    """

    name = "deconvnet"
    summary = "The deconvolutional network: rectified signal, unpooling through switches (Zeiler & Fergus 2014)"
    source = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, §2.1"
    inverse_layers = {"rectifier": Rectify(), "max_pool": Unpool(), "contrast_norm": PassThrough()}
    unit_signal = "activation"
