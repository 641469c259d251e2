"""Reference page of the operators, `docs/ops.md`, generated from the operators.

python -m fxpress.ir.ops.document > docs/ops.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields

from .base import LOWERINGS, OPERATORS, Op, Quantized
from .facts import EVERYTHING, FURTHER, Facts

_ON_INTEGERS = {
    Quantized.NEVER: "floats only",
    Quantized.COMPUTE: "computes on integers",
    Quantized.MOVE: "moves integers as they are",
}
_MOVEMENT = "moves elements"
_IN_ORDER = "moves elements and adds others"
_TITLE = """# Operators

Made by `python -m fxpress.ir.ops.document > docs/ops.md`; a test holds it against the code. `fxpress ops` lists
where each operator can run. Operands stand in this order, in brackets those that may be absent, which the text form
writes as `none`; code reads them by name: `node.operand("weight")`, or `node.optional("bias")`. Attributes that are
not shown in the text form have the default given here. An aten call that no operator takes becomes `torch_call`.

## Facts

Passes and backends ask an operator what they may rely on, and never whether it is one of a list of classes. The facts
are fields of `fxpress.ir.ops.facts.Facts`; those that depend on attributes are shown for the defaults. Operators that
move elements keep their order and common factors, and are linear, in all operands.

"""
_AUTHOR = """
## An operator of your own

The parameters of `infer` name the operands, in order; one that may be absent has the default None. `reference` has the
same parameters. Facts that are not declared are denied, so that an operator that declares none is never rewritten
wrongly. `tests/ir/ops/test_facts.py` refutes wrong declarations, and missing ones, on random operands.

```python
from dataclasses import dataclass

import torch

from fxpress.ir import Builder, Op, TensorType
from fxpress.ir.ops import Facts, operator


@operator("scaled_relu")
@dataclass(frozen=True)
class ScaledRelu(Op):
    \"\"\"scale * max(x, 0). Operands: x [n, c, ...], scale [c] or none.\"\"\"

    facts = Facts(piecewise_linear=(("x",), ("scale",)))
    learned_operands = ("scale",)

    def infer(self, x: TensorType, scale: TensorType | None = None) -> tuple[TensorType, ...]:
        return (x,)

    def reference(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        along = (-1, *[1] * (x.ndim - 2))
        return torch.relu(x) if scale is None else torch.relu(x) * scale.view(along)


builder = Builder()
x = builder.input("x", TensorType((1, 2, 4, 4)))
y = builder.add(ScaledRelu(), x, builder.constant("s", torch.tensor([1.0, 2.0])))
(node,) = builder.build([y]).nodes
assert node.operand("scale").name == "s" and node.with_operands(scale=None).optional("scale") is None
assert node.op.facts.is_piecewise_linear_in({"x"}) and not node.op.facts.is_piecewise_linear_in({"x", "scale"})
```

"""


def operators_document() -> str:
    """The page in Markdown: the text form of an operator, and a section for each module of operators."""
    families: dict[str, list[type[Op]]] = {}
    for op in OPERATORS.values():
        families.setdefault(op.__module__, []).append(op)
    sections = (_section(module, families[module]) for module in sorted(families, key=_short))
    return "\n".join([_TITLE + _meanings() + _AUTHOR, *sections])


def _meanings() -> str:
    """The fields of `Facts`, as explained in its docstring."""
    _, _, listed = inspect.cleandoc(Facts.__doc__ or "").partition("\n\n")
    rows = (line.split(None, 1) for line in listed.splitlines())
    return "| fact | meaning |\n|---|---|\n" + "".join(f"| `{name}` | {text} |\n" for name, text in rows)


def _section(module: str, ops: Iterable[type[Op]]) -> str:
    lines = [f"## {_short(module)}", "", inspect.cleandoc(sys.modules[module].__doc__ or ""), ""]
    lines += ["| operator | meaning | attributes | on integers | facts |", "|---|---|---|---|---|"]
    lines += [_row(op) for op in ops]
    overloads = [name for name, lowering in LOWERINGS.items() if lowering.__module__ == module]
    if overloads:
        lines += ["", f"From aten: {', '.join(f'`{name}`' for name in overloads)}."]
    return "\n".join([*lines, ""])


def _row(op: type[Op]) -> str:
    meaning = " ".join(inspect.cleandoc(op.__doc__ or "").split("\n\n")[0].split())
    attributes = ", ".join(f"`{f.name}={f.default!r}`" for f in fields(op)) or "-"
    cells = (
        f"`{op.name}({', '.join(_operands(op))})`",
        meaning,
        attributes,
        _ON_INTEGERS[op.quantized],
        _facts(op),
    )
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _facts(op: type[Op]) -> str:
    """The facts of an operator with default attributes."""
    is_inherited = op.facts is Op.facts  # an opaque call has no default attributes
    facts = (op.__new__(op) if is_inherited else op()).facts
    if FURTHER in facts.monotone:
        return _MOVEMENT if facts.selects and facts.homogeneous else _IN_ORDER
    words = [f.name for f in fields(Facts) if getattr(facts, f.name) is True]
    words += [f"monotone in {', '.join(facts.monotone)}"] if facts.monotone else []
    words += [f"piecewise linear in ({', '.join(joint)})" for joint in facts.piecewise_linear]
    words += [f"pole in {', '.join(facts.poles)}"] if facts.poles else []
    words += [f"neutral {name}={number:g}" for name, number in facts.neutral.items()]
    words += [f"from {facts.bounds[0]:g} to {facts.bounds[1]:g}"] if facts.bounds != EVERYTHING else []
    return "; ".join(words) or "-"


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
