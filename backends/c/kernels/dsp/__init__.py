"""Integer kernels for Cortex-M cores with the DSP extension."""

from . import offers, pool, sum

__all__ = ["offers", "pool", "sum"]
