"""The pass `sparsify`: sets single weights of the float graph to zero; later training keeps the zeros."""

from .sparsify import sparsify

__all__ = ["sparsify"]
