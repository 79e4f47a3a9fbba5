"""The plain gradient."""

from attribkit.method import InverseMethod


class Gradient(InverseMethod):
    """The score's derivative at each input value (Simonyan, Vedaldi & Zisserman 2014, §3)."""

    name = "gradient"
    summary = "The score's derivative at each pixel (Simonyan et al. 2014)"
    source = "Simonyan, Vedaldi & Zisserman, Deep Inside Convolutional Networks, ICLR 2014 workshop, §3"
    tags = frozenset({"inverse", "signed", "deterministic", "linear_in_seed"})
