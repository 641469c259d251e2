"""Cost prediction before compilation: instructions, cycles, bytes of flash, and bytes of stack."""

from ..kernels.base import Work
from ..kernels.costs import CoreCosts, Cost, Price
from ..plan.kernel_stack import CoreKind, variant
from .c_source import Preprocessor
from .code_size import CodeSizes, function_content, run_counts
from .constructs import Counts

__all__ = [
    "CodeSizes",
    "CoreCosts",
    "CoreKind",
    "Cost",
    "Counts",
    "Preprocessor",
    "Price",
    "Work",
    "function_content",
    "run_counts",
    "variant",
]
