"""The kernels, found by the operator's name. Importing this package registers all of them.

Families by machine: `portable` C for any core, `blocked` float kernels that compute in registers, `dsp` integer kernels
for Cortex-M cores with the DSP extension. What families share lies here.
"""

from . import blocked, dsp, portable
from .base import kernels

__all__ = ["blocked", "dsp", "kernels", "portable"]
