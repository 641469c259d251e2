"""Errors of the intermediate representation."""

from ..specs.root_error import FxpressError


class IRError(FxpressError):
    """Base of all errors raised by `fxpress.ir`."""


class ShapeError(IRError):
    """Operands do not fit an operator: rank, sizes, dtypes or quantization."""

    code = "G101"


class ParseError(IRError):
    """Text is not a graph; the message starts with `line:column`."""

    code = "G102"


class VerifyError(IRError):
    """A graph breaks a rule of the IR; the message shows the offending lines inside the dump."""

    code = "G103"


class UnsupportedError(IRError):
    """Valid input that this operator, interpreter or backend does not support."""

    code = "G104"


class OverflowBoundError(IRError):
    """An accumulator or scale could leave its range for some input, so the integer form is refused."""

    code = "G105"
