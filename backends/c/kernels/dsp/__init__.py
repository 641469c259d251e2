"""Integer kernels for Cortex-M cores with the DSP extension."""

from . import attention, offers, pool, recurrent, sum

__all__ = ["attention", "offers", "pool", "recurrent", "sum"]
