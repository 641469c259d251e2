"""Integer kernels for Cortex-M cores with the DSP extension."""

from . import attention, norm, offers, pool, recurrent, softmax, sum

__all__ = ["attention", "norm", "offers", "pool", "recurrent", "softmax", "sum"]
