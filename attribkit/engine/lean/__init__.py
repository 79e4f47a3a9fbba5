"""A lean way back: known operations keep what their derivative needs, and nothing of what passed through them.

Autograd keeps the activations of a convolutional network. With fixed weights and in eval mode the way back needs far
less: weights and shapes, one bit for each element of a piecewise-linear rectifier, one small integer for each pooled
element. An operation that is not known, or met in a setting that is not, keeps what autograd keeps.
"""

from attribkit.engine.lean.pixels import Pixels
from attribkit.engine.lean.record import Lean
from attribkit.engine.lean.recorder import Recorder

__all__ = ["Lean", "Pixels", "Recorder"]
