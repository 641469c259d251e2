"""Kernels for the processor of a computer: products with packed weights."""

from . import packed

__all__ = ["packed"]
