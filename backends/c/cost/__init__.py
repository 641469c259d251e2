"""Cost prediction before compilation: instructions, cycles, and bytes of flash."""

from ..kernels.base import Work
from ..kernels.costs import CoreCosts, Cost, Price
from .c_source import Preprocessor
from .code_size import CodeSizes, function_content, run_counts
from .constructs import Counts

__all__ = [
    "CodeSizes",
    "CoreCosts",
    "Cost",
    "Counts",
    "Preprocessor",
    "Price",
    "Work",
    "function_content",
    "run_counts",
]
