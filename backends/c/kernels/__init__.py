"""The kernels, found by the operator's name. Importing this package registers all of them."""

from . import binary, conv, linear, movement, offers_dsp, pool, quantize, unary
from .base import kernels

__all__ = ["binary", "conv", "kernels", "linear", "movement", "offers_dsp", "pool", "quantize", "unary"]
