"""Errors of the intermediate representation."""

from ..specs.root_error import FxpressError


class IRError(FxpressError):
    """Base of all errors raised by `fxpress.ir`."""


class ShapeError(IRError):
    """Operands do not fit an operator: rank, sizes, dtypes or quantization."""


class ParseError(IRError):
    """Text is not a graph; the message starts with `line:column`."""


class VerifyError(IRError):
    """A graph breaks a rule of the IR; the message shows the offending lines inside the dump."""


class UnsupportedError(IRError):
    """Something valid that this operator, interpreter or backend cannot carry."""


class OverflowBoundError(IRError):
    """An accumulator or scale could leave its range for some input, so the integer form is refused."""
