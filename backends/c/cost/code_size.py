"""Bytes of machine code of emitted C: constructs of its syntax tree, times what each takes on a core.

`constructs` reads a function as an optimizer does; `CodeSizes` weights the remaining constructs. The weights, a factor
for each template and the sizes of helpers are fitted by `benchmarks/code_size.py --fit` to the machine code of GCC for
random networks. No compiler is needed for a prediction.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from .c_source import Definitions, Preprocessor, definitions
from .constructs import Content, Counts, content

_TABLE = Path(__file__).parent / "measured" / "code.json"
_CALL = re.compile(r"^(\w+)\((.*)\);$")
_TRACE = "FXP_TRACE"
_ADDRESS = re.compile(r"\bmemory \+|^t\d+|^input|^output")


@dataclass(frozen=True)
class CodeSizes:
    """Bytes of machine code of each construct on a core, the factor of each template, and bytes of helpers."""

    constructs: Mapping[str, float]
    templates: Mapping[str, float]
    helpers: Mapping[str, int]

    @staticmethod
    def of(core: str) -> CodeSizes:
        """The measured sizes of a core or, if it is not measured, of the Cortex-M4 with its float unit."""
        return _measured().get(core, _measured()["cortex-m4f"])

    def bytes(self, counts: Counts, template: str) -> int:
        """Bytes of the functions that a template wrote."""
        whole = sum(number * self.constructs.get(name, 0.0) for name, number in counts.items())
        return round(whole * self.templates.get(template, 1.0))

    def helper_bytes(self, support: Sequence[str], preprocessor: Preprocessor) -> int:
        """Bytes of the helpers that are not inlined."""
        found = _helpers(tuple(support), preprocessor)
        return sum(self.helpers.get(name, 0) for name in found.apart) if found else 0


@cache
def _measured() -> dict[str, CodeSizes]:
    found = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {core: CodeSizes(**sizes) for core, sizes in found.items()}


def function_content(text: str, support: Sequence[str], preprocessor: Preprocessor) -> Content:
    """Constructs of the functions of a text, with those of the helpers of `support` that they inline.

    A text that is not plain C99 (a kernel of a package may have extensions) is counted by its lines.
    """
    return _content(text, tuple(support), preprocessor)


@lru_cache(maxsize=4096)
def _content(text: str, support: tuple[str, ...], preprocessor: Preprocessor) -> Content:
    helpers = _helpers(support, preprocessor)
    own = definitions(text, preprocessor, tuple(helpers.macros.items()) if helpers else ())
    if own is None:
        return Content({"unread line": float(sum(bool(line.strip()) for line in preprocessor.lines(text)))})
    return content(own, helpers)


@lru_cache(maxsize=256)
def _helpers(support: tuple[str, ...], preprocessor: Preprocessor) -> Definitions | None:
    return definitions("\n".join(support), preprocessor)


def run_counts(lines: Iterable[str], shared: Collection[str]) -> Counts:
    """Constructs of the function that calls the kernels.

    A kernel with one call has its constants in place; one that is `shared` gets their addresses, those after the
    fourth argument on the stack.
    """
    counts: Counter[str] = Counter({"run": 1})
    for line in lines:
        found = _CALL.match(line)
        if found is None or found[1] in (_TRACE, "memcpy"):  # a copied output is a separate node
            continue
        counts["run call"] += 1
        arguments = found[2].split(", ")
        addresses = sum(_ADDRESS.search(argument) is not None for argument in arguments)
        counts["run address"] += addresses
        if found[1] in shared:
            counts["run constant"] += len(arguments) - addresses
            counts["run stack argument"] += max(0, len(arguments) - 4)
    return counts
