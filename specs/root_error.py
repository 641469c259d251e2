"""The root of the errors that fxpress raises; it lies here, the one name of `specs` that `ir` knows."""

__all__ = ["FxpressError"]


class FxpressError(Exception):
    """Base of every exception that fxpress raises for a model, spec, graph or tool that it cannot use.

    Arguments of a wrong type or in a wrong combination raise TypeError or ValueError, as everywhere in Python.
    """
