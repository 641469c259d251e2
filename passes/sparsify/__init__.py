"""The pass `sparsify`: single weights of the float graph become zeros, which a later training keeps."""

from .sparsify import sparsify

__all__ = ["sparsify"]
