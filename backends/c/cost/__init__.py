"""Cost prediction before compilation: instructions, cycles, and bytes of flash."""

from .code_size import Preprocessor, count

__all__ = ["Preprocessor", "count"]
