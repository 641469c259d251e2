"""The reference page of the operators, `docs/ops.md`, made from the operators themselves.

python -m fxpress.ir.ops.document > docs/ops.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields

from .base import LOWERINGS, OPERATORS, Op, Quantized

_ON_INTEGERS = {
    Quantized.NEVER: "floats only",
    Quantized.COMPUTE: "computes on integers",
    Quantized.MOVE: "moves integers as they are",
}
_TITLE = """# Operators

Made by `python -m fxpress.ir.ops.document > docs/ops.md`; a test holds it against the code. `fxpress ops` lists
where each operator can run. Operands stand in this order, in brackets those that may be absent, which the text form
writes as `none`; code reads them by name: `node.operand("weight")`, or `node.optional("bias")`. Attributes that are
not shown in the text form have the default given here. An aten call that no operator takes becomes `torch_call`.
"""


def operators_document() -> str:
    """The page: a section for each module of operators, in Markdown."""
    families: dict[str, list[type[Op]]] = {}
    for op in OPERATORS.values():
        families.setdefault(op.__module__, []).append(op)
    sections = (_section(module, families[module]) for module in sorted(families, key=_short))
    return "\n".join([_TITLE, *sections])


def _section(module: str, ops: Iterable[type[Op]]) -> str:
    lines = [f"## {_short(module)}", "", inspect.cleandoc(sys.modules[module].__doc__ or ""), ""]
    lines += ["| operator | meaning | attributes | on integers |", "|---|---|---|---|"]
    lines += [_row(op) for op in ops]
    overloads = [name for name, lowering in LOWERINGS.items() if lowering.__module__ == module]
    if overloads:
        lines += ["", f"From aten: {', '.join(f'`{name}`' for name in overloads)}."]
    return "\n".join([*lines, ""])


def _row(op: type[Op]) -> str:
    meaning = " ".join(inspect.cleandoc(op.__doc__ or "").split("\n\n")[0].split())
    attributes = ", ".join(f"`{f.name}={f.default!r}`" for f in fields(op)) or "-"
    cells = (f"`{op.name}({', '.join(_operands(op))})`", meaning, attributes, _ON_INTEGERS[op.quantized])
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _operands(op: type[Op]) -> Iterator[str]:
    for parameter in list(inspect.signature(op.infer).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield f"{parameter.name}..."
        else:
            yield parameter.name if parameter.default is parameter.empty else f"[{parameter.name}]"


def _short(module: str) -> str:
    return module.rpartition(".")[2]


if __name__ == "__main__":
    sys.stdout.write(operators_document())
