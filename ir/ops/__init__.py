"""The operators. Importing this package registers all of them."""

from . import activation, binary, conv, linear, norm, pool, quantize, shape
from .base import LOWERINGS, OPERATORS, AtenCall, IntegerCall, Op, Quantized, attributes, lowers, operator

__all__ = [
    "LOWERINGS",
    "OPERATORS",
    "AtenCall",
    "IntegerCall",
    "Op",
    "Quantized",
    "activation",
    "attributes",
    "binary",
    "conv",
    "linear",
    "lowers",
    "norm",
    "operator",
    "pool",
    "quantize",
    "shape",
]
