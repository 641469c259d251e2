"""The kernels, found by the operator's name. Import of this package registers all of them.

Families by machine: `portable` C for any core, `blocked` float kernels that compute in registers, `dsp` integer
kernels for Cortex-M cores with the DSP extension, `host` kernels for computers. Modules that the families share are
in this folder.
"""

from ..plan.layout import Layout, contiguous
from . import blocked, dsp, host, portable
from .base import (
    Call,
    Constant,
    Function,
    Offer,
    Offers,
    Site,
    Work,
    kernel,
    kernels,
    kernels_of,
)

__all__ = [
    "Call",
    "Constant",
    "Function",
    "Layout",
    "Offer",
    "Offers",
    "Site",
    "Work",
    "blocked",
    "contiguous",
    "dsp",
    "host",
    "kernel",
    "kernels",
    "kernels_of",
    "portable",
]
