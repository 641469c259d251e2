"""Integer kernels for Cortex-M cores with the DSP extension."""

from . import offers, pool, recurrent, sum

__all__ = ["offers", "pool", "recurrent", "sum"]
