"""Float kernels that keep blocks of results in registers."""

from . import offers

__all__ = ["offers"]
