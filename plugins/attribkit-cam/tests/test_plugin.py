"""The plugin is installed."""

from attribkit_cam import _METHODS

import attribkit as ak


def test_the_methods_are_registered():
    known = ak.methods()
    for name, (_, summary, source) in _METHODS.items():
        assert (known[name].distribution, known[name].summary) == ("attribkit-cam", summary)
        assert known[name].source == source != ""
        assert known[name].load().name == name
        assert known[name].options == {"layer": None}
