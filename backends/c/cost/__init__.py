"""Cost prediction before compilation: instructions, cycles, bytes of flash, and bytes of stack."""

from ..kernels.base import Work
from ..kernels.costs import DECODER, CoreCosts, Cost, Price, decoding, priced_form, read_prices_anew
from ..plan.kernel_stack import CoreKind, variant
from .c_source import Preprocessor
from .code_size import CodeSizes, function_content, run_counts
from .constructs import Counts

__all__ = [
    "DECODER",
    "CodeSizes",
    "CoreCosts",
    "CoreKind",
    "Cost",
    "Counts",
    "Preprocessor",
    "Price",
    "Work",
    "decoding",
    "function_content",
    "priced_form",
    "read_prices_anew",
    "run_counts",
    "variant",
]
