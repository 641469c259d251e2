"""Constructs that a compiler at -O3 makes instructions of, counted in the syntax tree of a C function.

The tree is walked as an optimizer does: constants are folded, branches on constants are dropped, functions marked so
are inlined, short loops of constant length are repeated, comparisons are decided by the ranges of loop counters (a
window of an image without padding is not clipped), and what was computed before is not computed again. What is left
counts by kind: `load8`, `add`, `wide multiply`, `branch`, `call`, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf

from pycparser import c_ast as ast

from .c_source import ASSEMBLY, Definitions

Counts = Mapping[str, float]

_MOST_REPEATS = 16
_MOST_BRANCHES = 32
_MOST_REPEATED = 330.0  # GCC: max-completely-peeled-insns of 200, of what it expects to be left
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

_SIZES = {
    "int8_t": 1,
    "uint8_t": 1,
    "char": 1,
    "int16_t": 2,
    "uint16_t": 2,
    "int64_t": 8,
    "uint64_t": 8,
    "double": 8,
}
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
_OPPOSITES = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_REAL_COMPARISONS = {"<": "less", "<=": "less", ">": "greater", ">=": "greater", "==": "equal", "!=": "equal"}


@dataclass(frozen=True, slots=True)
class _Type:
    """A scalar type by name, behind `depth` pointers or arrays."""

    name: str = "int32_t"
    depth: int = 0

    @property
    def prefix(self) -> str:
        if self.depth:
            return ""
        if self.name in ("float", "double"):
            return "real "
        return "wide " if self.name in ("int64_t", "uint64_t") else ""

    @property
    def access(self) -> str:
        if self.depth:
            return "32"
        if self.name == "float":
            return "real"
        signed = "u" if self.name in ("uint8_t", "uint16_t") else ""
        return f"{signed}{8 * _SIZES.get(self.name, 4)}"


_INT, _REAL, _WIDE = _Type(), _Type("float"), _Type("int64_t")


@dataclass(frozen=True, slots=True)
class _Value:
    """A number, or an identity that equal computations share; `target` is the local that a pointer points to."""

    id: object
    type: _Type = _INT
    number: float | int | None = None
    target: str | None = None
    range: tuple[float, float] = (-inf, inf)  # least and largest number

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest number of an int32_t, whose overflow is undefined."""
        if self.number is not None:
            return self.number, self.number
        return self.range if self.type == _INT else (-inf, inf)


@dataclass
class _Scope:
    """Names of a function's body, by the local that they stand for."""

    names: dict[str, str] = field(default_factory=dict)
    returned: _Value | None = None


class _BlockEndError(Exception):
    """A statement that ends the block: break, continue or return."""


@dataclass(frozen=True)
class Content:
    """Constructs of functions by kind, and the functions of the C library that they call."""

    counts: Counts
    library: frozenset[str] = frozenset()


def content(own: Definitions, helpers: Definitions | None) -> Content:
    """Constructs of the functions of a text that are not inlined, with those of the helpers they inline."""
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
        self._uses = _calls(own)
        self._fresh = 0
        self._memory = 0
        self._values: dict[str, _Value] = {}
        self._types: dict[str, _Type] = {}
        self._seen: list[set[object]] = [set()]
        self._results: dict[object, int] = {}  # a short identity for each computation: operands nest deeply
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
        parameters = _parameters(node)
        for parameter in parameters:
            self._declare(parameter.name, _type(parameter.type), self._unknown(_type(parameter.type)))
        self._counts["function"] += 1
        self._counts["parameter"] += len(parameters)
        self._counts["parameter on stack"] += max(0, len(parameters) - 4)
        with suppress(_BlockEndError):
            self._statement(node.body)
        return self._counts

    # values

    def _unknown(self, type: _Type) -> _Value:
        self._fresh += 1
        return _Value(("unknown", self._fresh), type)

    def _declare(self, name: str, type: _Type, value: _Value | None) -> None:
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

    def _operation(self, kind: str, type: _Type, *operands: _Value, detail: object = None) -> _Value:
        key = (kind, type.name, detail, *(v.id for v in operands))
        id = ("result", self._results.setdefault(key, len(self._results)))
        if self._is_new(id):
            self._counts[kind] += 1
            for value in operands:
                self._literal(value)
        return _Value(id, type)

    def _literal(self, value: _Value) -> None:
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
                self._declare(item.name, _INT, self._value(item.value))
            return
        type_ = _type(node.type)
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
        after: list[dict[str, _Value]] = []
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

    def _merge(self, before: dict[str, _Value], after: list[dict[str, _Value]]) -> None:
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

    def _repeats(self, node: ast.For) -> list[_Value] | None:
        """Values of the counter of a loop, where its end is a number of steps away from its start."""
        cond = node.cond
        if not isinstance(cond, ast.BinaryOp) or not isinstance(cond.left, ast.ID):
            return None
        local = self._local(cond.left.name)
        if local is None:
            return None
        step = _step(node.next, cond.left.name)
        start, end = self._values[local], self._quiet(cond.right)
        distance = _distance(start, end)
        if step is None or distance is None:
            return None
        at, turns = 0, []
        while _compare(cond.op, at, distance):
            turns.append(_moved(start, at))
            at += step
            if len(turns) > 100_000:
                return None
        return turns

    def _bound(self, node: ast.For) -> list[_Value] | None:
        """Values of the counter of a loop that begins at zero and ends below a small number, as many as it can take."""
        cond = node.cond
        if not isinstance(cond, ast.BinaryOp) or cond.op != "<" or not isinstance(cond.left, ast.ID):
            return None
        local = self._local(cond.left.name)
        if local is None or self._values[local].number != 0 or _step(node.next, cond.left.name) != 1:
            return None
        most = self._quiet(cond.right).bounds[1]
        return [_number(at) for at in range(int(most))] if 1 < most <= _MOST_REPEATS else None

    def _bound_counter(
        self, start: _Value, body: ast.Node, cond: ast.BinaryOp, after: ast.Node | None
    ) -> None:
        """The range of a counter within its loop: between its start and its end, unless the body assigns it."""
        local, step = self._local(_name(cond)), _step(after, _name(cond))
        if local is None or step is None or _assigns(body, _name(cond)):
            return
        low, high = _limited((-inf, inf), cond.op, self._quiet(cond.right).bounds)
        if step > 0:
            low = start.bounds[0]
        else:
            high = start.bounds[1]
        self._values[local] = replace(self._values[local], range=(low, high))

    def _repeated(self, node: ast.For, turns: list[_Value]) -> bool:
        """Whether GCC repeats the body: few turns, no calls, and a size of which a third is expected to vanish."""
        if len(turns) > _MOST_REPEATS or _assigns(node.stmt, _name(node.cond)):
            return False
        once = self._trial(node, turns[1])
        if once["loop"] + once["assembly"] + once["call"] + once["memcpy call"] + once["memset call"]:
            return False
        if once["branch"] * len(turns) > _MOST_BRANCHES:
            return False
        turn = sum(number * _ESTIMATED.get(kind, 1.0) for kind, number in once.items())
        return len(turns) * turn < _MOST_REPEATED

    def _trial(self, node: ast.For, counter: _Value) -> Counter[str]:
        """Constructs of one turn of a loop; an access that the counter selects needs its address, too."""
        kept = (
            self._counts,
            dict(self._values),
            self._memory,
            self._called,
            dict(self._types),
            self._counter,
        )
        self._counts, self._called, self._counter = Counter(), [], _name(node.cond)
        self._seen.append(set())
        self._count_from(node, counter)
        try:
            self._turn(node)
            self._counts["add"] += sum(_assigned(part) != self._counter for part in _parts(node.next))
        finally:
            self._seen.pop()
            counted = self._counts
            self._counts, self._values, self._memory, self._called, self._types, self._counter = kept
        return counted

    def _turn(self, node: ast.For) -> None:
        with suppress(_BlockEndError):
            self._statement(node.stmt)

    def _repeat(self, node: ast.For, turns: list[_Value], *, each: tuple[str, ...] = ()) -> None:
        for counter in turns:
            self._count_from(node, counter)
            self._counts.update(each)
            self._turn(node)
            self._others(node.next, _name(node.cond))

    def _count_from(self, node: ast.For, counter: _Value) -> None:
        local = self._local(_name(node.cond))
        assert local is not None
        self._values[local] = counter

    def _others(self, node: ast.Node | None, counter: str) -> None:
        """Constructs of the third part of a `for` other than its counter."""
        for part in _parts(node):
            if _assigned(part) != counter:
                self._value(part)

    def _block_idiom(self, node: ast.For, trips: int) -> bool:
        """A loop that copies or fills consecutive elements, which becomes a call."""
        statement = node.stmt
        while isinstance(statement, ast.Compound) and len(statement.block_items or []) == 1:
            statement = statement.block_items[0]
        name = _name(node.cond)
        if not isinstance(statement, ast.Assignment) or statement.op != "=" or _step(node.next, name) != 1:
            return False
        if isinstance(node.next, ast.ExprList) or not _consecutive(statement.lvalue, name):
            return False
        source = statement.rvalue
        copies = isinstance(source, ast.ArrayRef) and _consecutive(source, name)
        if not copies and (_mentions(source, name) or not isinstance(source, (ast.Constant, ast.UnaryOp))):
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
            _changed(part, changed)
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

    def _quiet(self, node: ast.Node) -> _Value:
        kept = self._counts
        self._counts = Counter()
        self._seen.append(set())
        value = self._value(node)
        self._seen.pop()
        self._counts = kept
        return value

    def _value(self, node: ast.Node, *, condition: bool = False) -> _Value:
        if isinstance(node, ast.BinaryOp):
            return self._binary_expression(node, condition=condition)
        return _EXPRESSIONS[type(node)](self, node)

    def _expressions(self, node: ast.ExprList) -> _Value:
        value = _Value(None)
        for item in node.exprs:
            value = self._value(item)
        return value

    def _nothing(self, node: ast.Node) -> _Value:
        return _Value(None)

    def _constant_expression(self, node: ast.Constant) -> _Value:
        if node.type == "string":
            return _Value(("s", node.value), _Type("char", 1))
        text = (
            node.value.rstrip("uUlL") if node.value.startswith(("0x", "0X")) else node.value.rstrip("uUlLfF")
        )
        if node.type in ("float", "double") or "." in text:
            number = float(text)
            return _Value(("k", number), _REAL, number)
        return self._constant(int(text, 0))

    def _constant(self, number: float, type: _Type = _INT) -> _Value:
        return _Value(("k", number), type, number)

    def _identifier(self, node: ast.ID) -> _Value:
        if node.name in _CONSTANTS:
            return self._constant(_CONSTANTS[node.name])
        local = self._local(node.name)
        if local is None:
            return _Value(("global", node.name), _INT)
        return self._values[local] if local in self._values else self._unknown(self._types[local])

    def _cast(self, node: ast.Cast) -> _Value:
        return self._converted(self._value(node.expr), _type(node.to_type.type))

    def _converted(self, value: _Value, type: _Type) -> _Value:
        if type.name == "void" or type.name.startswith("struct") or value.target is not None:
            return (
                value
                if not type.depth or value.target
                else _Value(value.id, type, value.number, value.target)
            )
        if value.number is not None:
            number = value.number if type.name in ("float", "double") else int(value.number)
            if type.name == "uint32_t" and not type.depth:
                number = int(number) & 0xFFFFFFFF
            elif type.name == "int32_t" and not type.depth:
                number = (int(number) + 2**31) % 2**32 - 2**31
            return _Value(("k", number), type, number)
        before, after = value.type.prefix, type.prefix
        if before != after and not value.type.depth and not type.depth:
            if "real " in (before, after):
                kind = "to real" if after == "real " else "to integer"
                return self._operation(("wide " if "wide " in (before, after) else "") + kind, type, value)
            return self._operation("widen", type, value) if after == "wide " else _Value(value.id, type)
        if not type.depth and _SIZES.get(type.name, 4) in (1, 2) and type.name != value.type.name:
            return self._operation("narrow", type, value)
        return _Value(value.id, type, range=value.bounds)

    def _unary(self, node: ast.UnaryOp) -> _Value:
        op, inner = node.op, node.expr
        if op in ("++", "--", "p++", "p--"):
            old = self._value(inner)
            step = self._constant(1 if "+" in op else -1)
            new = self._binary("+", old, step)
            self._assign(inner, new)
            return old if op.startswith("p") else new
        if op == "sizeof":
            type = _type(inner.type) if isinstance(inner, ast.Typename) else _INT
            return self._constant(_SIZES.get(type.name, 4))
        if op == "&":
            target = self._place(inner)
            if target is not None:
                return _Value(("ref", target), _Type(self._types.get(target, _INT).name, 1), target=target)
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
            return self._operation("compare", _INT, value)
        return self._operation(f"{value.type.prefix}{'negate' if op == '-' else 'bits'}", value.type, value)

    def _binary_expression(self, node: ast.BinaryOp, *, condition: bool = False) -> _Value:
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
            return self._unknown(_INT)
        return self._binary(node.op, self._value(node.left), self._value(node.right), condition=condition)

    def _binary(self, op: str, a: _Value, b: _Value, *, condition: bool = False) -> _Value:
        value = self._result(op, a, b)
        if value.number is not None or value.type != _INT:
            return value
        return replace(value, range=_interval(op, a.bounds, b.bounds))

    def _result(self, op: str, a: _Value, b: _Value) -> _Value:
        if a.number is not None and b.number is not None:
            folded = _folded(op, a.number, b.number)
            if folded is not None:
                return self._constant(folded, _REAL if isinstance(folded, float) else _common(a.type, b.type))
        if op in _COMPARISONS and (known := _decided(op, a, b)) is not None:
            return self._constant(known)
        if op in _COMPARISONS:
            prefix = _common(a.type, b.type).prefix
            kind = "compare" if prefix != "real " else "unordered" if a.id == b.id else _REAL_COMPARISONS[op]
            return self._operation(prefix + kind, _INT, a, b, detail=op)
        if a.type.depth or b.type.depth:
            pointer, index = (a, b) if a.type.depth else (b, a)
            if b.type.depth and a.type.depth:
                return self._operation("add", _INT, a, b, detail=op)
            return self._offset(pointer, index, op)
        if op == "-" and (distance := _distance(b, a)) is not None:
            return self._constant(distance)
        if a.number is not None and op in ("+", "*", "&", "|", "^"):
            a, b = b, a
        type = a.type if op in ("<<", ">>") else _common(a.type, b.type)
        if b.number is not None and type.prefix != "real ":
            if (b.number == 0 and op in ("+", "-", "|", "<<", ">>", "^")) or (
                b.number == 1 and op in ("*", "/")
            ):
                return _Value(a.id, type)
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

    def _plus(self, a: _Value, number: int, type: _Type) -> _Value:
        """a + number: additions of numbers are joined."""
        if isinstance(a.id, tuple) and a.id and a.id[0] == "plus":
            base, number = a.id[1], number + a.id[2]
            if number == 0:
                return _Value(base, type)
        else:
            base = a.id
        key = ("plus", base, number)
        if self._is_new(key):
            self._counts[f"{type.prefix}add number"] += 1
            self._literal(_Value(None, _INT, number))
        return _Value(key, type)

    def _offset(self, pointer: _Value, index: _Value, op: str) -> _Value:
        """A pointer moved by elements: numbers cost nothing where it is read."""
        base, rest, number = _split(pointer.id)
        if index.number is not None:
            number += int(index.number) * (1 if op == "+" else -1)
        else:
            inner, extra = _without_number(index.id)
            rest = (*rest, (op, inner))
            number += extra if op == "+" else -extra
        return _Value(("at", base, rest, number), pointer.type, None)

    def _element(self, node: ast.ArrayRef) -> _Value:
        return self._load(node.name, node.subscript)

    def _field(self, node: ast.StructRef) -> _Value:
        place = self._place(node)
        if place is not None:
            if place not in self._values:
                self._values[place] = self._unknown(_INT)
            return self._values[place]
        base = self._value(node.name)
        return self._operation("load32", _INT, base, detail=(node.field.name, self._memory))

    def _place(self, node: ast.Node) -> str | None:
        """The local that an expression names: a variable, a field of one, or what a pointer to a local points to."""
        if isinstance(node, ast.ID):
            return self._local(node.name)
        if isinstance(node, ast.StructRef):
            target = self._quiet(node.name).target if node.type == "->" else self._place(node.name)
            return None if target is None else f"{target}.{node.field.name}"
        if isinstance(node, ast.UnaryOp) and node.op == "*":
            return self._quiet(node.expr).target
        return None

    def _pointer(self, name: ast.Node, subscript: ast.Node | None) -> _Value:
        pointer = self._value(name)
        if subscript is not None:
            pointer = self._offset(pointer, self._value(subscript), "+")
            if (
                self._counter
                and _mentions(subscript, self._counter)
                and self._is_new(("indexed", pointer.id))
            ):
                self._counts["indexed"] += 1
        return pointer

    def _load(self, name: ast.Node, subscript: ast.Node | None) -> _Value:
        if subscript is None:
            target = self._quiet(name).target
            if target is not None:
                return self._values[target]
        pointer = self._pointer(name, subscript)
        type = _Type(pointer.type.name, max(0, pointer.type.depth - 1))
        self._access(pointer)
        return self._operation(f"load{type.access}", type, _Value(pointer.id), detail=self._memory)

    def _access(self, pointer: _Value) -> None:
        """The address of an access: one computation for each part that is no number."""
        base, rest, _ = _split(pointer.id)
        if rest and self._is_new(("address", base, rest)):
            self._counts["address"] += 1

    def _address(self, node: ast.Node) -> _Value:
        if isinstance(node, ast.ArrayRef):
            return self._pointer(node.name, node.subscript)
        if isinstance(node, ast.UnaryOp) and node.op == "*":
            return self._value(node.expr)
        return self._unknown(_Type("int32_t", 1))

    def _assignment(self, node: ast.Assignment) -> _Value:
        value = self._value(node.rvalue)
        if node.op != "=":
            value = self._binary(node.op[:-1], self._value(node.lvalue), value)
        self._assign(node.lvalue, value)
        return value

    def _assign(self, target: ast.Node, value: _Value) -> None:
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
            pointer = self._unknown(_Type("int32_t", 1))
        type = _Type(pointer.type.name, max(0, pointer.type.depth - 1))
        if type.prefix != value.type.prefix:
            value = self._converted(value, type)
        self._access(pointer)
        self._literal(value)
        self._counts[f"store{type.access.lstrip('u')}"] += 1
        self._memory += 1

    def _conditional(self, node: ast.TernaryOp) -> _Value:
        condition = self._value(node.cond, condition=True)
        if condition.number is not None:
            return self._value(node.iftrue if condition.number else node.iffalse)
        arms = []
        for arm in (node.iftrue, node.iffalse):
            self._seen.append(set())
            arms.append(self._value(arm))
            self._seen.pop()
        type = _common(arms[0].type, arms[1].type)
        if arms[0].target is not None or arms[1].target is not None:
            return arms[0]
        chosen = self._operation(f"{type.prefix}select", type, condition, *arms)
        bounds = [
            self._arm_bounds(node.cond, arm, holds) for arm, holds in zip(arms, (True, False), strict=True)
        ]
        lows, highs = zip(*bounds, strict=True)
        return replace(chosen, range=(min(lows), max(highs)))

    def _arm_bounds(self, cond: ast.Node, arm: _Value, holds: bool) -> tuple[float, float]:
        """Bounds of an arm that is compared with the other: of a minimum, a maximum."""
        if arm.number is not None or not isinstance(cond, ast.BinaryOp) or cond.op not in _OPPOSITES:
            return arm.bounds
        op = cond.op if holds else _OPPOSITES[cond.op]
        left, right = self._quiet(cond.left), self._quiet(cond.right)
        if arm.id == left.id:
            return _limited(arm.bounds, op, right.bounds)
        return _limited(arm.bounds, _MIRRORED[op], left.bounds) if arm.id == right.id else arm.bounds

    def _call(self, node: ast.FuncCall) -> _Value:
        name = node.name.name if isinstance(node.name, ast.ID) else ""
        arguments = node.args.exprs if node.args is not None else []
        if name == ASSEMBLY:
            self._counts["instruction"] += int(arguments[0].value)
            self._counts["assembly"] += int(arguments[0].value) > _ONE_LINE
            return _Value(None)
        if name in _LITERALS:
            found = self._value(arguments[0])
            return self._constant(found.number or 0, _WIDE if "64" in name else _INT)
        if name == "FXP_SATURATE8_SHIFTED":
            self._value(arguments[1])
            self._counts["instruction"] += 1
            self._assign(arguments[0], self._unknown(_INT))
            return _Value(None)
        if name == "__builtin_fmaf":
            return self._operation("real fused", _REAL, *map(self._value, arguments))
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
        return self._unknown(_REAL if real else _type(function.decl.type.type) if function else _INT)

    def _block(self, name: str, values: list[_Value]) -> _Value:
        length = values[2].number
        if name == "memcpy" and length in (1, 2, 4):
            local = values[0].target
            self._access(values[1])
            loaded = self._operation("load32", _Type("uint32_t"), _Value(values[1].id), detail=self._memory)
            if values[1].target is not None:
                loaded = self._values[values[1].target]
                self._counts["load32"] -= 1
            if local is not None:
                self._values[local] = loaded
            else:
                self._counts["store32"] += 1
                self._access(values[0])
                self._memory += 1
            return _Value(None)
        if length is None or length > _LONGEST_INLINE:
            self._counts[f"{name} call"] += 1
            self.external.add(name)
        else:
            size = "short" if length <= _SHORT else "long"
            unit = 1 if _SIZES.get(values[0].type.name, 4) == 1 else 4
            self._counts[f"{name} {size} {unit}"] += 1
            self._counts[f"{name} {size} {unit} units"] += -(-int(length) // unit)
        self._literal(values[2])
        self._memory += 1
        return _Value(None)

    def _inlines(self, name: str, function: ast.FuncDef) -> bool:
        if name in self._apart or len(self._scopes) > _DEEPEST:
            return False
        return "inline" in (function.decl.funcspec or []) or self._uses[name] <= 1

    def _inline(self, function: ast.FuncDef, values: list[_Value]) -> _Value:
        scope = _Scope()
        self._scopes.append(scope)
        for parameter, value in zip(_parameters(function), values, strict=False):
            type = _type(parameter.type)
            self._declare(parameter.name, type, value if value.target else self._converted(value, type))
        before = dict(self._types)
        with suppress(_BlockEndError):
            self._statement(function.body)
        self._types = {k: t for k, t in self._types.items() if k in before or "#" in k}
        self._scopes.pop()
        result = _type(function.decl.type.type)
        if scope.returned is None:
            return self._unknown(result)
        return scope.returned if result.name.startswith("struct") else self._converted(scope.returned, result)

    def _literal_object(self, node: ast.Node) -> _Value:
        return self._unknown(_INT)


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
_EXPRESSIONS: Mapping[type[ast.Node], Callable[[_Walker, ast.Node], _Value]] = {
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


def _type(node: ast.Node) -> _Type:
    depth = 0
    while isinstance(node, (ast.PtrDecl, ast.ArrayDecl)):
        depth += 1
        node = node.type
    if isinstance(node, ast.TypeDecl):
        inner = node.type
        if isinstance(inner, ast.IdentifierType):
            return _Type(inner.names[-1], depth)
        return _Type(f"struct {getattr(inner, 'name', '')}", depth)
    return _Type("int32_t", depth)


def _parameters(node: ast.FuncDef) -> list[ast.Decl]:
    arguments = node.decl.type.args
    found = arguments.params if arguments is not None else []
    return [p for p in found if isinstance(p, ast.Decl)]


def _common(a: _Type, b: _Type) -> _Type:
    for type in (a, b):
        if type.depth:
            return type
    for prefix in ("real ", "wide "):
        for type in (a, b):
            if type.prefix == prefix:
                return type
    return _Type("uint32_t") if "uint32_t" in (a.name, b.name) else _INT


def _folded(op: str, a: float, b: float) -> float | int | None:
    if op in ("<", ">", "<=", ">=", "==", "!="):
        return int(_compare(op, a, b))
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if isinstance(a, float) or isinstance(b, float):
        return None if op != "/" or b == 0 else a / b
    if op in ("/", "%"):
        if b == 0:
            return None
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return quotient if op == "/" else a - quotient * b
    if op == "<<":
        return (a << b) & 0xFFFFFFFFFFFFFFFF if 0 <= b < 64 else None
    if op == ">>":
        return a >> b if 0 <= b < 64 else None
    return {"&": a & b, "|": a | b, "^": a ^ b}.get(op)


def _number(number: int) -> _Value:
    return _Value(("k", number), _INT, number)


def _moved(value: _Value, number: int) -> _Value:
    """A value plus a number, before anything is counted for it."""
    if value.number is not None:
        return _number(int(value.number) + number)
    base, extra = _without_number(value.id)
    low, high = value.bounds
    id = ("plus", base, extra + number) if extra + number else base
    return _Value(id, value.type, range=(low + number, high + number))


def _distance(a: _Value, b: _Value) -> int | None:
    """b - a, where that is a number."""
    if a.number is not None and b.number is not None:
        return int(b.number) - int(a.number)
    (base, number), (other, end) = _without_number(a.id), _without_number(b.id)
    same = base is not None and base == other and a.type == b.type == _INT
    return end - number if same else None


def _decided(op: str, a: _Value, b: _Value) -> int | None:
    """The result of a comparison that the ranges of its operands decide."""
    if op not in _OPPOSITES or a.type.prefix or b.type.prefix:
        return None
    if _within(a.bounds, op, b.bounds):
        return 1
    return 0 if _within(a.bounds, _OPPOSITES[op], b.bounds) else None


def _within(a: tuple[float, float], op: str, b: tuple[float, float]) -> bool:
    """Whether every number of a range compares so with every number of another."""
    closest = (a[1], b[0]) if op in ("<", "<=") else (a[0], b[1])
    return inf not in map(abs, closest) and _compare(op, *closest)


def _limited(a: tuple[float, float], op: str, b: tuple[float, float]) -> tuple[float, float]:
    """The numbers of a range that compare so with one of another."""
    low, high = a
    if op in ("<", "<="):
        return low, min(high, b[1] - (op == "<"))
    if op in (">", ">="):
        return max(low, b[0] + (op == ">")), high
    return a


def _interval(op: str, a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """The range of a result."""
    if op == "+":
        return a[0] + b[0], a[1] + b[1]
    if op == "-":
        return a[0] - b[1], a[1] - b[0]
    if inf in map(abs, (*a, *b)):
        return -inf, inf
    if op == "*":
        products = [x * y for x in a for y in b]
        return min(products), max(products)
    if op == "/" and b[0] == b[1] and b[0] > 0:
        return int(a[0] / b[0]), int(a[1] / b[0])
    if op == "%" and a[0] >= 0 and b[0] > 0:
        return 0, min(a[1], b[1] - 1)
    return -inf, inf


def _compare(op: str, a: float, b: float) -> bool:
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "==": a == b, "!=": a != b}[op]


def _step(node: ast.Node | None, name: str) -> int | None:
    for part in _parts(node):
        if isinstance(part, ast.UnaryOp) and isinstance(part.expr, ast.ID) and part.expr.name == name:
            return 1 if "++" in part.op else -1
        if (isinstance(part, ast.Assignment) and isinstance(part.lvalue, ast.ID) and part.lvalue.name == name
                and isinstance(part.rvalue, ast.Constant) and part.op in ("+=", "-=")):  # fmt: skip
            step = int(part.rvalue.value.rstrip("uUlL"), 0)
            return step if part.op == "+=" else -step
    return None


def _parts(node: ast.Node | None) -> list[ast.Node]:
    """The expressions of the third part of a `for`."""
    if node is None:
        return []
    return list(node.exprs) if isinstance(node, ast.ExprList) else [node]


def _assigned(node: ast.Node) -> str | None:
    target = node.lvalue if isinstance(node, ast.Assignment) else getattr(node, "expr", None)
    return target.name if isinstance(target, ast.ID) else None


def _name(node: ast.Node) -> str:
    return str(node.left.name)


def _changed(node: ast.Node | None, found: set[str]) -> None:
    """Names that a statement assigns to, or passes the address of."""
    if node is None:
        return
    if isinstance(node, ast.Assignment):
        found.add(_root(node.lvalue))
    elif isinstance(node, ast.UnaryOp) and node.op in ("++", "--", "p++", "p--", "&"):
        found.add(_root(node.expr))
    for _, child in node.children():
        _changed(child, found)


def _root(node: ast.Node) -> str:
    while not isinstance(node, ast.ID):
        children = node.children()
        if not children:
            return ""
        if isinstance(node, ast.ArrayRef):
            return ""
        node = children[0][1]
    return str(node.name)


def _consecutive(node: ast.Node, name: str) -> bool:
    """Whether an element is `x[... + name]`, with the counter once and in no product."""
    if not isinstance(node, ast.ArrayRef):
        return False
    terms, pending = 0, [node.subscript]
    while pending:
        part = pending.pop()
        if isinstance(part, ast.BinaryOp) and part.op == "+":
            pending += [part.left, part.right]
        elif isinstance(part, ast.ID) and part.name == name:
            terms += 1
        elif _mentions(part, name):
            return False
    return terms == 1


def _mentions(node: ast.Node, name: str) -> bool:
    if isinstance(node, ast.ID):
        return bool(node.name == name)
    return any(_mentions(child, name) for _, child in node.children())


def _assigns(node: ast.Node, name: str) -> bool:
    found: set[str] = set()
    _changed(node, found)
    return name in found


def _split(id: object) -> tuple[object, tuple[object, ...], int]:
    if isinstance(id, tuple) and id and id[0] == "at":
        return id[1], id[2], id[3]
    return id, (), 0


def _without_number(id: object) -> tuple[object, int]:
    if isinstance(id, tuple) and id and id[0] == "plus":
        return id[1], id[2]
    return id, 0


def _calls(own: Definitions) -> Counter[str]:
    """Number of calls of each function in a text."""
    found: Counter[str] = Counter()

    def visit(node: ast.Node) -> None:
        if isinstance(node, ast.FuncCall) and isinstance(node.name, ast.ID):
            found[node.name.name] += 1
        for _, child in node.children():
            visit(child)

    for function in own.functions.values():
        visit(function.body)
    return found
