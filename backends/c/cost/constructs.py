"""Constructs that become instructions with a compiler at -O3, counted in the syntax tree of a C function.

The tree is walked as an optimizer does: constants are folded, branches on constants are dropped, functions marked as
inline are inlined, short loops of constant length are unrolled, comparisons are decided by the ranges of loop counters
(a window of an image without padding is not clipped), and repeated computations are counted once. The remaining
constructs are counted by kind: `load8`, `add`, `wide multiply`, `branch`, `call`, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf

from pycparser import c_ast as ast

from .c_source import ASSEMBLY, Definitions
from .scalars import (
    INT,
    OPPOSITES,
    REAL,
    SIZES,
    WIDE,
    CType,
    Scalar,
    base_and_number,
    common_type,
    decided_comparison,
    folded_number,
    is_true,
    limited_range,
    number_between,
    plus_number,
    range_of_result,
    scalar_of,
    split_place,
)
from .tree_queries import (
    assigned_name,
    assigns_to,
    calls_in,
    collect_changed,
    counter_name,
    counter_step,
    is_consecutive,
    loop_expressions,
    mentions,
    parameters_of,
    type_of,
)

Counts = Mapping[str, float]

_MOST_REPEATS = 16
_MOST_BRANCHES = 32
_MOST_REPEATED = 330.0  # GCC: max-completely-peeled-insns of 200, of the expected remaining size
_ESTIMATED = {  # statements of GCC, where not one
    "number": 0.0,
    "widen": 0.0,
    "narrow": 0.0,
    "compare": 0.0,
    "address": 0.0,
    "branch": 2.0,
}
_ONE_LINE = 3  # instructions of assembly that is part of an expression
_DEEPEST = 12
_SHORT, _LONGEST_INLINE = 16, 64  # bytes of blocks that are copied without a call, on some cores and on most

_CONSTANTS = {
    "INT32_MIN": -(2**31),
    "INT32_MAX": 2**31 - 1,
    "NULL": 0,
    "INT64_MAX": 2**63 - 1,
    "INT64_MIN": -(2**63),
}
_LITERALS = {"INT64_C", "UINT64_C", "INT32_C", "UINT32_C"}
_KINDS = {"+": "add", "-": "add", "*": "multiply", "/": "divide", "%": "divide", "<<": "shift", ">>": "shift",
          "&": "bits", "|": "bits", "^": "bits"}  # fmt: skip
_COMPARISONS = {"<", ">", "<=", ">=", "==", "!="}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_REAL_COMPARISONS = {"<": "less", "<=": "less", ">": "greater", ">=": "greater", "==": "equal", "!=": "equal"}


@dataclass
class _Scope:
    """Names in a function's body, with the locals that they denote."""

    names: dict[str, str] = field(default_factory=dict)
    returned: Scalar | None = None


class _BlockEndError(Exception):
    """A statement that ends the block: break, continue or return."""


@dataclass(frozen=True)
class Content:
    """Constructs of functions by kind, and the functions of the C library that they call."""

    counts: Counts
    library: frozenset[str] = frozenset()


def content(own: Definitions, helpers: Definitions | None) -> Content:
    """Constructs of the functions of a text that are not inlined, with those of the helpers that they inline."""
    walker = _Walker(own, helpers)
    counts = walker.text()
    return Content(counts, frozenset(walker.external))


class _Walker:
    def __init__(self, own: Definitions, helpers: Definitions | None) -> None:
        known = dict(helpers.functions) if helpers else {}
        self._functions = {**known, **own.functions}
        self._own = own
        self._apart = own.apart | (helpers.apart if helpers else frozenset())
        self._counts: Counter[str] = Counter()
        self._uses = calls_in(own)
        self._fresh = 0
        self._memory = 0
        self._values: dict[str, Scalar] = {}
        self._types: dict[str, CType] = {}
        self._seen: list[set[object]] = [set()]
        self._results: dict[
            object, int
        ] = {}  # a short identity for each computation, because operands nest deeply
        self._scopes: list[_Scope] = []
        self._called: list[str] = []
        self._counter = ""
        self.external: set[str] = set()

    def text(self) -> Counts:
        total: Counter[str] = Counter()
        pending = [n for n, f in self._own.functions.items() if n in self._apart]
        done: set[str] = set()
        while pending:
            name = pending.pop()
            if name in done or name not in self._own.functions:
                continue
            done.add(name)
            self._called = []
            total.update(self._function(name))
            pending += self._called
        return total

    def _function(self, name: str) -> Counter[str]:
        self._counts, self._seen = Counter(), [set()]
        self._values, self._scopes, self._types = {}, [_Scope()], {}
        node = self._functions[name]
        parameters = parameters_of(node)
        for parameter in parameters:
            self._declare(parameter.name, type_of(parameter.type), self._unknown(type_of(parameter.type)))
        self._counts["function"] += 1
        self._counts["parameter"] += len(parameters)
        self._counts["parameter on stack"] += max(0, len(parameters) - 4)
        with suppress(_BlockEndError):
            self._statement(node.body)
        return self._counts

    # values

    def _unknown(self, type: CType) -> Scalar:
        self._fresh += 1
        return Scalar(("unknown", self._fresh), type)

    def _declare(self, name: str, type: CType, value: Scalar | None) -> None:
        self._fresh += 1
        local = f"{name}#{self._fresh}"
        self._scopes[-1].names[name] = local
        self._types[local] = type
        self._values[local] = value if value is not None else self._unknown(type)

    def _is_new(self, key: object) -> bool:
        if any(key in seen for seen in self._seen):
            return False
        self._seen[-1].add(key)
        return True

    def _operation(self, kind: str, type: CType, *operands: Scalar, detail: object = None) -> Scalar:
        key = (kind, type.name, detail, *(v.id for v in operands))
        id = ("result", self._results.setdefault(key, len(self._results)))
        if self._is_new(id):
            self._counts[kind] += 1
            for value in operands:
                self._literal(value)
        return Scalar(id, type)

    def _literal(self, value: Scalar) -> None:
        if (
            value.number is not None
            and not -256 < value.number < 256
            and self._is_new(("literal", value.number))
        ):
            self._counts["number"] += 1

    # statements

    def _statement(self, node: ast.Node | None) -> None:
        if node is None:
            return
        method = _STATEMENTS.get(type(node))
        if method is not None:
            method(self, node)
        else:
            self._value(node)

    def _compound(self, node: ast.Compound) -> None:
        names = dict(self._scopes[-1].names)
        try:
            for item in node.block_items or []:
                self._statement(item)
        finally:
            self._scopes[-1].names = names

    def _declarations(self, node: ast.DeclList) -> None:
        for item in node.decls:
            self._statement(item)

    def _declaration(self, node: ast.Decl) -> None:
        if isinstance(node.type, ast.Enum):
            for item in node.type.values.enumerators:
                self._declare(item.name, INT, self._value(item.value))
            return
        type_ = type_of(node.type)
        value = None
        if isinstance(node.init, ast.InitList):
            for item in node.init.exprs:
                self._value(item)
        elif node.init is not None:
            value = self._converted(self._value(node.init), type_)
        self._declare(node.name, type_, value)

    def _if(self, node: ast.If) -> None:
        condition = self._value(node.cond, condition=True)
        if condition.number is not None:
            self._statement(node.iftrue if condition.number else node.iffalse)
            return
        self._counts["branch"] += 1
        self._branches(node.iftrue, node.iffalse)

    def _branches(self, *bodies: ast.Node | None) -> None:
        before = dict(self._values)
        after: list[dict[str, Scalar]] = []
        for body in bodies:
            self._values = dict(before)
            self._seen.append(set())
            try:
                self._statement(body)
            except _BlockEndError:
                pass
            else:
                after.append(self._values)
            self._seen.pop()
        self._merge(before, after or [before])

    def _merge(self, before: dict[str, Scalar], after: list[dict[str, Scalar]]) -> None:
        merged = dict(before)
        for name, value in before.items():
            found = {values[name].id for values in after if name in values}
            if found != {value.id}:
                same = next(iter(found)) if len(found) == 1 else None
                merged[name] = next(v[name] for v in after) if same is not None else self._unknown(value.type)
        self._values = merged

    def _while(self, node: ast.While) -> None:
        self._rolled(node.stmt, node.cond, None)

    def _do(self, node: ast.DoWhile) -> None:
        self._rolled(node.stmt, node.cond, None)

    def _for(self, node: ast.For) -> None:
        names = dict(self._scopes[-1].names)
        self._statement(node.init)
        turns = self._repeats(node)
        bound = self._bound(node) if turns is None else None
        if turns is not None and (len(turns) <= 1 or self._repeated(node, turns)):
            self._repeat(node, turns)
        elif bound is not None and self._repeated(node, bound):
            self._repeat(node, bound, each=("branch",))
        elif turns is None or not self._block_idiom(node, len(turns)):
            self._rolled(node.stmt, node.cond, node.next, trips=None if turns is None else len(turns))
        self._scopes[-1].names = names

    def _repeats(self, node: ast.For) -> list[Scalar] | None:
        """Values of a loop counter, if its end is a constant number of steps from its start."""
        cond = node.cond
        if not isinstance(cond, ast.BinaryOp) or not isinstance(cond.left, ast.ID):
            return None
        local = self._local(cond.left.name)
        if local is None:
            return None
        step = counter_step(node.next, cond.left.name)
        start, end = self._values[local], self._quiet(cond.right)
        distance = number_between(start, end)
        if step is None or distance is None:
            return None
        at, turns = 0, []
        while is_true(cond.op, at, distance):
            turns.append(plus_number(start, at))
            at += step
            if len(turns) > 100_000:
                return None
        return turns

    def _bound(self, node: ast.For) -> list[Scalar] | None:
        """Values of the counter of a loop that begins at zero and ends below a small number: the largest possible
        number of them.
        """
        cond = node.cond
        if not isinstance(cond, ast.BinaryOp) or cond.op != "<" or not isinstance(cond.left, ast.ID):
            return None
        local = self._local(cond.left.name)
        if local is None or self._values[local].number != 0 or counter_step(node.next, cond.left.name) != 1:
            return None
        most = self._quiet(cond.right).bounds[1]
        return [scalar_of(at) for at in range(int(most))] if 1 < most <= _MOST_REPEATS else None

    def _bound_counter(
        self, start: Scalar, body: ast.Node, cond: ast.BinaryOp, after: ast.Node | None
    ) -> None:
        """The range of a counter within its loop: between its start and its end, unless the body assigns to it."""
        local, step = self._local(counter_name(cond)), counter_step(after, counter_name(cond))
        if local is None or step is None or assigns_to(body, counter_name(cond)):
            return
        low, high = limited_range((-inf, inf), cond.op, self._quiet(cond.right).bounds)
        if step > 0:
            low = start.bounds[0]
        else:
            high = start.bounds[1]
        self._values[local] = replace(self._values[local], range=(low, high))

    def _repeated(self, node: ast.For, turns: list[Scalar]) -> bool:
        """True if GCC unrolls the body: few iterations, no calls, and a size of which a third is expected to vanish."""
        if len(turns) > _MOST_REPEATS or assigns_to(node.stmt, counter_name(node.cond)):
            return False
        once = self._trial(node, turns[1])
        if once["loop"] + once["assembly"] + once["call"] + once["memcpy call"] + once["memset call"]:
            return False
        if once["branch"] * len(turns) > _MOST_BRANCHES:
            return False
        turn = sum(number * _ESTIMATED.get(kind, 1.0) for kind, number in once.items())
        return len(turns) * turn < _MOST_REPEATED

    def _trial(self, node: ast.For, counter: Scalar) -> Counter[str]:
        """Constructs of one iteration of a loop; an access that the counter selects also needs its address."""
        kept = (
            self._counts,
            dict(self._values),
            self._memory,
            self._called,
            dict(self._types),
            self._counter,
        )
        self._counts, self._called, self._counter = Counter(), [], counter_name(node.cond)
        self._seen.append(set())
        self._count_from(node, counter)
        try:
            self._turn(node)
            self._counts["add"] += sum(
                assigned_name(part) != self._counter for part in loop_expressions(node.next)
            )
        finally:
            self._seen.pop()
            counted = self._counts
            self._counts, self._values, self._memory, self._called, self._types, self._counter = kept
        return counted

    def _turn(self, node: ast.For) -> None:
        with suppress(_BlockEndError):
            self._statement(node.stmt)

    def _repeat(self, node: ast.For, turns: list[Scalar], *, each: tuple[str, ...] = ()) -> None:
        for counter in turns:
            self._count_from(node, counter)
            self._counts.update(each)
            self._turn(node)
            self._others(node.next, counter_name(node.cond))

    def _count_from(self, node: ast.For, counter: Scalar) -> None:
        local = self._local(counter_name(node.cond))
        assert local is not None
        self._values[local] = counter

    def _others(self, node: ast.Node | None, counter: str) -> None:
        """Constructs of the third part of a `for` other than its counter."""
        for part in loop_expressions(node):
            if assigned_name(part) != counter:
                self._value(part)

    def _block_idiom(self, node: ast.For, trips: int) -> bool:
        """Detects a loop that copies or fills consecutive elements, which becomes a call."""
        statement = node.stmt
        while isinstance(statement, ast.Compound) and len(statement.block_items or []) == 1:
            statement = statement.block_items[0]
        name = counter_name(node.cond)
        if (
            not isinstance(statement, ast.Assignment)
            or statement.op != "="
            or counter_step(node.next, name) != 1
        ):
            return False
        if isinstance(node.next, ast.ExprList) or not is_consecutive(statement.lvalue, name):
            return False
        source = statement.rvalue
        copies = isinstance(source, ast.ArrayRef) and is_consecutive(source, name)
        if not copies and (mentions(source, name) or not isinstance(source, (ast.Constant, ast.UnaryOp))):
            return False
        self.external.add("memcpy" if copies else "memset")
        self._counts["memcpy call" if copies else "memset call"] += 1
        self._memory += 1
        return True

    def _rolled(
        self, body: ast.Node, cond: ast.Node | None, after: ast.Node | None, *, trips: int | None = None
    ) -> None:
        changed: set[str] = set()
        for part in (body, cond, after):
            collect_changed(part, changed)
        start = None
        if isinstance(cond, ast.BinaryOp) and isinstance(cond.left, ast.ID):
            start = self._quiet(cond.left)
        self._forget(changed)
        self._memory += 1
        self._counts["loop"] += 1
        if trips is None:
            self._counts["open loop"] += 1
        self._seen.append(set())
        if cond is not None:
            self._value(cond, condition=True)
        if start is not None:
            self._bound_counter(start, body, cond, after)
        with suppress(_BlockEndError):
            self._statement(body)
        self._statement(after)
        self._seen.pop()
        self._forget(changed)
        self._memory += 1

    def _forget(self, names: set[str]) -> None:
        for name in names:
            local = self._local(name)
            if local is not None:
                value = self._values[local]
                if value.target is not None:
                    local = value.target
                self._values[local] = self._unknown(self._types.get(local, value.type))
        for local in list(self._values):
            if "." in local and any(local.startswith(f"{self._local(n)}.") for n in names):
                self._values[local] = self._unknown(self._values[local].type)

    def _return(self, node: ast.Return) -> None:
        if node.expr is not None:
            value = self._value(node.expr)
            scope = self._scopes[-1]
            scope.returned = value if scope.returned is None else self._unknown(value.type)
        raise _BlockEndError

    def _stop(self, node: ast.Break) -> None:
        raise _BlockEndError

    def _switch(self, node: ast.Switch) -> None:
        self._value(node.cond)
        for item in node.stmt.block_items or []:
            self._counts["branch"] += 1
            self._branches(ast.Compound(getattr(item, "stmts", [item])))

    # expressions

    def _local(self, name: str) -> str | None:
        return self._scopes[-1].names.get(name)

    def _quiet(self, node: ast.Node) -> Scalar:
        kept = self._counts
        self._counts = Counter()
        self._seen.append(set())
        value = self._value(node)
        self._seen.pop()
        self._counts = kept
        return value

    def _value(self, node: ast.Node, *, condition: bool = False) -> Scalar:
        if isinstance(node, ast.BinaryOp):
            return self._binary_expression(node, condition=condition)
        return _EXPRESSIONS[type(node)](self, node)

    def _expressions(self, node: ast.ExprList) -> Scalar:
        value = Scalar(None)
        for item in node.exprs:
            value = self._value(item)
        return value

    def _nothing(self, node: ast.Node) -> Scalar:
        return Scalar(None)

    def _constant_expression(self, node: ast.Constant) -> Scalar:
        if node.type == "string":
            return Scalar(("s", node.value), CType("char", 1))
        text = (
            node.value.rstrip("uUlL") if node.value.startswith(("0x", "0X")) else node.value.rstrip("uUlLfF")
        )
        if node.type in ("float", "double") or "." in text:
            number = float(text)
            return Scalar(("k", number), REAL, number)
        return self._constant(int(text, 0))

    def _constant(self, number: float, type: CType = INT) -> Scalar:
        return Scalar(("k", number), type, number)

    def _identifier(self, node: ast.ID) -> Scalar:
        if node.name in _CONSTANTS:
            return self._constant(_CONSTANTS[node.name])
        local = self._local(node.name)
        if local is None:
            return Scalar(("global", node.name), INT)
        return self._values[local] if local in self._values else self._unknown(self._types[local])

    def _cast(self, node: ast.Cast) -> Scalar:
        return self._converted(self._value(node.expr), type_of(node.to_type.type))

    def _converted(self, value: Scalar, type: CType) -> Scalar:
        if type.name == "void" or type.name.startswith("struct") or value.target is not None:
            return (
                value
                if not type.depth or value.target
                else Scalar(value.id, type, value.number, value.target)
            )
        if value.number is not None:
            number = value.number if type.name in ("float", "double") else int(value.number)
            if type.name == "uint32_t" and not type.depth:
                number = int(number) & 0xFFFFFFFF
            elif type.name == "int32_t" and not type.depth:
                number = (int(number) + 2**31) % 2**32 - 2**31
            return Scalar(("k", number), type, number)
        before, after = value.type.prefix, type.prefix
        if before != after and not value.type.depth and not type.depth:
            if "real " in (before, after):
                kind = "to real" if after == "real " else "to integer"
                return self._operation(("wide " if "wide " in (before, after) else "") + kind, type, value)
            return self._operation("widen", type, value) if after == "wide " else Scalar(value.id, type)
        if not type.depth and SIZES.get(type.name, 4) in (1, 2) and type.name != value.type.name:
            return self._operation("narrow", type, value)
        return Scalar(value.id, type, range=value.bounds)

    def _unary(self, node: ast.UnaryOp) -> Scalar:
        op, inner = node.op, node.expr
        if op in ("++", "--", "p++", "p--"):
            old = self._value(inner)
            step = self._constant(1 if "+" in op else -1)
            new = self._binary("+", old, step)
            self._assign(inner, new)
            return old if op.startswith("p") else new
        if op == "sizeof":
            type = type_of(inner.type) if isinstance(inner, ast.Typename) else INT
            return self._constant(SIZES.get(type.name, 4))
        if op == "&":
            target = self._place(inner)
            if target is not None:
                return Scalar(("ref", target), CType(self._types.get(target, INT).name, 1), target=target)
            return self._address(inner)
        if op == "*":
            return self._load(inner, None)
        value = self._value(inner)
        if op == "+":
            return value
        if value.number is not None:
            folded = {"-": -value.number, "!": int(not value.number), "~": ~int(value.number)}[op]
            return self._constant(folded, value.type)
        if op == "!":
            return self._operation("compare", INT, value)
        return self._operation(f"{value.type.prefix}{'negate' if op == '-' else 'bits'}", value.type, value)

    def _binary_expression(self, node: ast.BinaryOp, *, condition: bool = False) -> Scalar:
        if node.op in ("&&", "||"):
            left = self._value(node.left, condition=True)
            if left.number is not None:
                if bool(left.number) == (node.op == "||"):
                    return self._constant(int(node.op == "||"))
                return self._value(node.right, condition=condition)
            self._seen.append(set())
            right = self._value(node.right, condition=True)
            self._seen.pop()
            if right.number is not None:
                return left if bool(right.number) == (node.op == "&&") else right
            self._counts["branch"] += 1
            return self._unknown(INT)
        return self._binary(node.op, self._value(node.left), self._value(node.right), condition=condition)

    def _binary(self, op: str, a: Scalar, b: Scalar, *, condition: bool = False) -> Scalar:
        value = self._result(op, a, b)
        if value.number is not None or value.type != INT:
            return value
        return replace(value, range=range_of_result(op, a.bounds, b.bounds))

    def _result(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        if a.number is not None and b.number is not None:
            folded = folded_number(op, a.number, b.number)
            if folded is not None:
                return self._constant(
                    folded, REAL if isinstance(folded, float) else common_type(a.type, b.type)
                )
        if op in _COMPARISONS and (known := decided_comparison(op, a, b)) is not None:
            return self._constant(known)
        if op in _COMPARISONS:
            prefix = common_type(a.type, b.type).prefix
            kind = "compare" if prefix != "real " else "unordered" if a.id == b.id else _REAL_COMPARISONS[op]
            return self._operation(prefix + kind, INT, a, b, detail=op)
        if a.type.depth or b.type.depth:
            pointer, index = (a, b) if a.type.depth else (b, a)
            if b.type.depth and a.type.depth:
                return self._operation("add", INT, a, b, detail=op)
            return self._offset(pointer, index, op)
        if op == "-" and (distance := number_between(b, a)) is not None:
            return self._constant(distance)
        if a.number is not None and op in ("+", "*", "&", "|", "^"):
            a, b = b, a
        type = a.type if op in ("<<", ">>") else common_type(a.type, b.type)
        if b.number is not None and type.prefix != "real ":
            if (b.number == 0 and op in ("+", "-", "|", "<<", ">>", "^")) or (
                b.number == 1 and op in ("*", "/")
            ):
                return Scalar(a.id, type)
            if b.number == 0 and op in ("*", "&"):
                return self._constant(0)
            if op == "%" and b.number == 1:
                return self._constant(0)
            if op in ("+", "-"):
                return self._plus(a, int(b.number) * (1 if op == "+" else -1), type)
            power = int(b.number) > 0 and not int(b.number) & (int(b.number) - 1)
            kind = _KINDS[op]
            if op in ("*", "/", "%"):
                kind += " power" if power else " number"
            elif op in ("<<", ">>"):
                kind += " number"
            return self._operation(type.prefix + kind, type, a, b, detail=op)
        kind = "subtract" if op == "-" and type.prefix == "real " else _KINDS[op]
        return self._operation(type.prefix + kind, type, a, b, detail=op)

    def _plus(self, a: Scalar, number: int, type: CType) -> Scalar:
        """a + number; additions of numbers are combined."""
        if isinstance(a.id, tuple) and a.id and a.id[0] == "plus":
            base, number = a.id[1], number + a.id[2]
            if number == 0:
                return Scalar(base, type)
        else:
            base = a.id
        key = ("plus", base, number)
        if self._is_new(key):
            self._counts[f"{type.prefix}add number"] += 1
            self._literal(Scalar(None, INT, number))
        return Scalar(key, type)

    def _offset(self, pointer: Scalar, index: Scalar, op: str) -> Scalar:
        """A pointer moved by elements: constant offsets cost nothing in the access."""
        base, rest, number = split_place(pointer.id)
        if index.number is not None:
            number += int(index.number) * (1 if op == "+" else -1)
        else:
            inner, extra = base_and_number(index.id)
            rest = (*rest, (op, inner))
            number += extra if op == "+" else -extra
        return Scalar(("at", base, rest, number), pointer.type, None)

    def _element(self, node: ast.ArrayRef) -> Scalar:
        return self._load(node.name, node.subscript)

    def _field(self, node: ast.StructRef) -> Scalar:
        place = self._place(node)
        if place is not None:
            if place not in self._values:
                self._values[place] = self._unknown(INT)
            return self._values[place]
        base = self._value(node.name)
        return self._operation("load32", INT, base, detail=(node.field.name, self._memory))

    def _place(self, node: ast.Node) -> str | None:
        """The local that an expression denotes: a variable, a field of one, or the target of a pointer to a local."""
        if isinstance(node, ast.ID):
            return self._local(node.name)
        if isinstance(node, ast.StructRef):
            target = self._quiet(node.name).target if node.type == "->" else self._place(node.name)
            return None if target is None else f"{target}.{node.field.name}"
        if isinstance(node, ast.UnaryOp) and node.op == "*":
            return self._quiet(node.expr).target
        return None

    def _pointer(self, name: ast.Node, subscript: ast.Node | None) -> Scalar:
        pointer = self._value(name)
        if subscript is not None:
            pointer = self._offset(pointer, self._value(subscript), "+")
            if self._counter and mentions(subscript, self._counter) and self._is_new(("indexed", pointer.id)):
                self._counts["indexed"] += 1
        return pointer

    def _load(self, name: ast.Node, subscript: ast.Node | None) -> Scalar:
        if subscript is None:
            target = self._quiet(name).target
            if target is not None:
                return self._values[target]
        pointer = self._pointer(name, subscript)
        type = CType(pointer.type.name, max(0, pointer.type.depth - 1))
        self._access(pointer)
        return self._operation(f"load{type.access}", type, Scalar(pointer.id), detail=self._memory)

    def _access(self, pointer: Scalar) -> None:
        """The address of an access: one computation for each part that is not a number."""
        base, rest, _ = split_place(pointer.id)
        if rest and self._is_new(("address", base, rest)):
            self._counts["address"] += 1

    def _address(self, node: ast.Node) -> Scalar:
        if isinstance(node, ast.ArrayRef):
            return self._pointer(node.name, node.subscript)
        if isinstance(node, ast.UnaryOp) and node.op == "*":
            return self._value(node.expr)
        return self._unknown(CType("int32_t", 1))

    def _assignment(self, node: ast.Assignment) -> Scalar:
        value = self._value(node.rvalue)
        if node.op != "=":
            value = self._binary(node.op[:-1], self._value(node.lvalue), value)
        self._assign(node.lvalue, value)
        return value

    def _assign(self, target: ast.Node, value: Scalar) -> None:
        place = self._place(target)
        if place is not None:
            type = self._types.get(place)
            self._values[place] = self._converted(value, type) if type is not None else value
            return
        if isinstance(target, ast.ArrayRef):
            pointer = self._pointer(target.name, target.subscript)
        elif isinstance(target, ast.UnaryOp):
            pointer = self._value(target.expr)
        else:
            pointer = self._unknown(CType("int32_t", 1))
        type = CType(pointer.type.name, max(0, pointer.type.depth - 1))
        if type.prefix != value.type.prefix:
            value = self._converted(value, type)
        self._access(pointer)
        self._literal(value)
        self._counts[f"store{type.access.lstrip('u')}"] += 1
        self._memory += 1

    def _conditional(self, node: ast.TernaryOp) -> Scalar:
        condition = self._value(node.cond, condition=True)
        if condition.number is not None:
            return self._value(node.iftrue if condition.number else node.iffalse)
        arms = []
        for arm in (node.iftrue, node.iffalse):
            self._seen.append(set())
            arms.append(self._value(arm))
            self._seen.pop()
        type = common_type(arms[0].type, arms[1].type)
        if arms[0].target is not None or arms[1].target is not None:
            return arms[0]
        chosen = self._operation(f"{type.prefix}select", type, condition, *arms)
        bounds = [
            self._arm_bounds(node.cond, arm, holds) for arm, holds in zip(arms, (True, False), strict=True)
        ]
        lows, highs = zip(*bounds, strict=True)
        return replace(chosen, range=(min(lows), max(highs)))

    def _arm_bounds(self, cond: ast.Node, arm: Scalar, holds: bool) -> tuple[float, float]:
        """Bounds of an operand that is compared with the other, in a minimum or a maximum."""
        if arm.number is not None or not isinstance(cond, ast.BinaryOp) or cond.op not in OPPOSITES:
            return arm.bounds
        op = cond.op if holds else OPPOSITES[cond.op]
        left, right = self._quiet(cond.left), self._quiet(cond.right)
        if arm.id == left.id:
            return limited_range(arm.bounds, op, right.bounds)
        return limited_range(arm.bounds, _MIRRORED[op], left.bounds) if arm.id == right.id else arm.bounds

    def _call(self, node: ast.FuncCall) -> Scalar:
        name = node.name.name if isinstance(node.name, ast.ID) else ""
        arguments = node.args.exprs if node.args is not None else []
        if name == ASSEMBLY:
            self._counts["instruction"] += int(arguments[0].value)
            self._counts["assembly"] += int(arguments[0].value) > _ONE_LINE
            return Scalar(None)
        if name in _LITERALS:
            found = self._value(arguments[0])
            return self._constant(found.number or 0, WIDE if "64" in name else INT)
        if name == "FXP_SATURATE8_SHIFTED":
            self._value(arguments[1])
            self._counts["instruction"] += 1
            self._assign(arguments[0], self._unknown(INT))
            return Scalar(None)
        if name == "__builtin_fmaf":
            return self._operation("real fused", REAL, *map(self._value, arguments))
        function = self._functions.get(name)
        values = [self._value(argument) for argument in arguments]
        if function is not None and self._inlines(name, function):
            return self._inline(function, values)
        if name in ("memcpy", "memset"):
            return self._block(name, values)
        self._called.append(name)
        if function is None:
            self.external.add(name)
        self._counts["call"] += 1
        self._counts["argument"] += len(values)
        for value in values:
            self._literal(value)
        self._memory += 1
        real = function is None and name.endswith("f")
        return self._unknown(REAL if real else type_of(function.decl.type.type) if function else INT)

    def _block(self, name: str, values: list[Scalar]) -> Scalar:
        length = values[2].number
        if name == "memcpy" and length in (1, 2, 4):
            local = values[0].target
            self._access(values[1])
            loaded = self._operation("load32", CType("uint32_t"), Scalar(values[1].id), detail=self._memory)
            if values[1].target is not None:
                loaded = self._values[values[1].target]
                self._counts["load32"] -= 1
            if local is not None:
                self._values[local] = loaded
            else:
                self._counts["store32"] += 1
                self._access(values[0])
                self._memory += 1
            return Scalar(None)
        if length is None or length > _LONGEST_INLINE:
            self._counts[f"{name} call"] += 1
            self.external.add(name)
        else:
            size = "short" if length <= _SHORT else "long"
            unit = 1 if SIZES.get(values[0].type.name, 4) == 1 else 4
            self._counts[f"{name} {size} {unit}"] += 1
            self._counts[f"{name} {size} {unit} units"] += -(-int(length) // unit)
        self._literal(values[2])
        self._memory += 1
        return Scalar(None)

    def _inlines(self, name: str, function: ast.FuncDef) -> bool:
        if name in self._apart or len(self._scopes) > _DEEPEST:
            return False
        return "inline" in (function.decl.funcspec or []) or self._uses[name] <= 1

    def _inline(self, function: ast.FuncDef, values: list[Scalar]) -> Scalar:
        scope = _Scope()
        self._scopes.append(scope)
        for parameter, value in zip(parameters_of(function), values, strict=False):
            type = type_of(parameter.type)
            self._declare(parameter.name, type, value if value.target else self._converted(value, type))
        before = dict(self._types)
        with suppress(_BlockEndError):
            self._statement(function.body)
        self._types = {k: t for k, t in self._types.items() if k in before or "#" in k}
        self._scopes.pop()
        result = type_of(function.decl.type.type)
        if scope.returned is None:
            return self._unknown(result)
        return scope.returned if result.name.startswith("struct") else self._converted(scope.returned, result)

    def _literal_object(self, node: ast.Node) -> Scalar:
        return self._unknown(INT)


_STATEMENTS: Mapping[type[ast.Node], Callable[[_Walker, ast.Node], None]] = {
    ast.Compound: _Walker._compound,
    ast.DeclList: _Walker._declarations,
    ast.Decl: _Walker._declaration,
    ast.If: _Walker._if,
    ast.While: _Walker._while,
    ast.DoWhile: _Walker._do,
    ast.For: _Walker._for,
    ast.Return: _Walker._return,
    ast.Break: _Walker._stop,
    ast.Switch: _Walker._switch,
    ast.Continue: _Walker._stop,
}
_EXPRESSIONS: Mapping[type[ast.Node], Callable[[_Walker, ast.Node], Scalar]] = {
    ast.ExprList: _Walker._expressions,
    ast.EmptyStatement: _Walker._nothing,
    ast.Constant: _Walker._constant_expression,
    ast.ID: _Walker._identifier,
    ast.Cast: _Walker._cast,
    ast.UnaryOp: _Walker._unary,
    ast.ArrayRef: _Walker._element,
    ast.StructRef: _Walker._field,
    ast.Assignment: _Walker._assignment,
    ast.TernaryOp: _Walker._conditional,
    ast.FuncCall: _Walker._call,
    ast.CompoundLiteral: _Walker._literal_object,
}
