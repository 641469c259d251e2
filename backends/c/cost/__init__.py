"""Cost prediction before compilation: instructions, cycles, and bytes of flash."""

from .c_source import Preprocessor
from .code_size import CodeSizes, function_content, run_counts
from .constructs import Counts

__all__ = ["CodeSizes", "Counts", "Preprocessor", "function_content", "run_counts"]
