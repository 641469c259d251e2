"""Rewrite rules: a pattern, a condition that returns the reason against a match, and the replacement.

A pattern is a Python function over operands, traced once:

    def conv_batchnorm(x, w, b=OPTIONAL, *stats):
        return op(BatchNorm)(op(Conv)(x, w, b), *stats)

Each parameter binds an operand, which may be absent if the default is OPTIONAL; `*rest` binds all that follow. `op(A,
B)` matches either operator with any attributes. A parameter that occurs twice must bind the same value. Operands of
`add` and `mul` match in both orders, the later computed one first.

`apply_rule` walks the graph once, in order, and matches each node in the graph as rewritten so far: chains collapse in
one walk, in time linear in the number of nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, signature

from torch import Tensor

from ..ir import OPERATORS, Builder, Graph, Node, Op, Source, Value, rewrite
from ..specs.root_error import ArgumentError, expect, shown
from .report import Decision


@dataclass(frozen=True)
class Variable:
    """A parameter of a pattern function."""

    name: str
    optional: bool = False
    variadic: bool = False


@dataclass(frozen=True)
class Application:
    """An operator applied to terms."""

    ops: tuple[type[Op], ...]
    operands: tuple[Variable | Application, ...]

    def __str__(self) -> str:
        return " or ".join(
            name for cls in self.ops for name, found in OPERATORS.items() if issubclass(found, cls)
        )


Term = Variable | Application
OPTIONAL: Term = Variable("OPTIONAL", optional=True)
PatternFunction = Callable[..., Application]


def op(*classes: type[Op]) -> Callable[..., Application]:
    """Pattern of one of these operators, with any attributes; call it with the patterns of its operands."""

    wrong = next((c for c in classes if not (isinstance(c, type) and issubclass(c, Op))), None)
    if wrong is not None:
        fact = f"expects classes of operators, got {shown(wrong)}"
        raise ArgumentError("op(...)", fact, "for example op(ops.Conv)")

    def apply(*operands: Term) -> Application:
        for operand in operands:
            expect(operand, (Variable, Application), "op(...)(operands)", "parameters of the pattern")
        return Application(classes, operands)

    return apply


@dataclass(frozen=True)
class Match:
    """Match of a pattern: nodes in topological order, and the values bound to its parameters."""

    nodes: tuple[Node, ...]
    bound: dict[str, tuple[Value | None, ...]]
    builder: Builder
    uses: _Uses

    @property
    def root(self) -> Node:
        """The last node, whose result the rewrite replaces."""
        return self.nodes[-1]

    def value(self, name: str) -> Value:
        """The value of a parameter that is always present."""
        (value,) = self.bound[name]
        assert value is not None
        return value

    def optional(self, name: str) -> Value | None:
        """The value of a parameter, None if the operand is absent."""
        (value,) = self.bound[name]
        return value

    def rest(self, name: str) -> tuple[Value | None, ...]:
        """The values of a `*` parameter."""
        return self.bound[name]

    def tensor(self, value: Value | None) -> Tensor | None:
        """The tensor of a value that is a constant, else None."""
        return None if value is None else self.builder.tensor(value)

    def replace_constant(self, value: Value, tensor: Tensor) -> Value:
        """A constant in place of `value`, with its name if nothing else reads that."""
        if self.uses.is_read_once(value):
            self.builder.release(value.name)
        return self.builder.derived_constant(value.name, tensor)

    def are_constant(self, *values: Value | None) -> bool:
        """True if each of the values is a constant or absent."""
        return all(value is None or self.builder.tensor(value) is not None for value in values)


@dataclass(frozen=True)
class Rule:
    """A rewrite: `where` returns the reason against a match, or None; `rewrite` builds the new result."""

    name: str
    pattern: PatternFunction
    where: Callable[[Match], str | None]
    rewrite: Callable[[Builder, Match], Value]
    applied: str = "applied"


def _keep_nothing(source: Source) -> bool:
    """Default of `is_kept`: no layer is kept."""
    return False


def apply_rule(
    graph: Graph, rule: Rule, *, is_kept: Callable[[Source], bool] = _keep_nothing
) -> tuple[Graph, tuple[Decision, ...]]:
    """`graph` with the rule applied to all matches, and the decision for each node at which a match starts.

    A match is not rewritten if its inner results have another use or are outputs of the graph, or if `is_kept` is
    True for one of its nodes.
    """
    term = trace(rule.pattern)
    uses = _Uses(graph)
    decisions: list[Decision] = []

    def visit(
        builder: Builder, node: Node, operands: tuple[Value | None, ...]
    ) -> Value | tuple[Value, ...] | None:
        if not isinstance(node.op, term.ops):
            uses.replaced(node, None)
            return None
        candidate = Node(node.op, operands, node.outputs, node.source)
        found = _Attempt(builder, uses).match(term, candidate)
        reason = found if isinstance(found, str) else _why_kept(found, is_kept) or rule.where(found)
        decisions.append(
            Decision(rule.name, node.outputs[0].name, node.source, reason is None, reason or rule.applied)
        )
        result = None if reason is not None or isinstance(found, str) else rule.rewrite(builder, found)
        uses.replaced(node, result)
        return result

    return rewrite(graph, visit), tuple(decisions)


def _why_kept(match: Match, is_kept: Callable[[Source], bool]) -> str | None:
    return "the spec keeps this layer" if any(is_kept(node.source) for node in match.nodes) else None


def apply_rules(graph: Graph, rules: Sequence[Rule]) -> tuple[Graph, tuple[Decision, ...]]:
    """Applies each rule once, in order."""
    decisions: list[Decision] = []
    for rule in rules:
        graph, decided = apply_rule(graph, rule)
        decisions += decided
    return graph, tuple(decisions)


def trace(function: PatternFunction) -> Application:
    """The term that a pattern function builds."""
    positional: list[Variable] = []
    named: dict[str, Variable] = {}
    for p in signature(function).parameters.values():
        variable = Variable(p.name, p.default is OPTIONAL, p.kind is Parameter.VAR_POSITIONAL)
        if p.kind is Parameter.KEYWORD_ONLY:
            named[p.name] = variable
        else:
            positional.append(variable)
    return function(*positional, **named)


class _Uses:
    """Use counts of values in the graph under construction, counted in the original graph.

    A new value is read wherever the old values that it replaces were read. If it replaces several, reads by dropped
    nodes count, too: the count may be too high, but never too low.
    """

    def __init__(self, graph: Graph) -> None:
        read = Counter(v.name for node in graph.nodes for v in node.operands)
        read.update(v.name for v in graph.outputs)
        self._old = read
        self._new: Counter[str] = Counter()

    def replaced(self, node: Node, result: Value | tuple[Value, ...] | None) -> None:
        results = (
            node.outputs if result is None else (result,) if isinstance(result, Value) else result
        )  # a kept node keeps its names
        for old, new in zip(node.outputs, results, strict=True):
            self._new[new.name] += self._old[old.name]

    def is_read_once(self, value: Value) -> bool:
        return self._old[value.name] == 1

    def is_single(self, value: Value) -> bool:
        return self._new[value.name] == 1


@dataclass(frozen=True)
class _Partial:
    """Partial match of a pattern."""

    nodes: tuple[Node, ...] = ()
    bound: Mapping[str, tuple[Value | None, ...]] = field(default_factory=dict)

    def bind(self, name: str, values: tuple[Value | None, ...]) -> _Partial:
        return _Partial(self.nodes, {**self.bound, name: values})


class _Attempt:
    """One search for a match. It records how far it came, and the mismatch there."""

    def __init__(self, builder: Builder, uses: _Uses) -> None:
        self._builder, self._uses = builder, uses
        self._reasons: list[tuple[int, str]] = []

    def match(self, term: Application, root: Node) -> Match | str:
        """The match at `root`, or the reason why there is none."""
        for found in self._at(term, root, _Partial()):
            shared = [n for n in found.nodes[:-1] if not self._uses.is_single(n.outputs[0])]
            if not shared:
                return Match(found.nodes, dict(found.bound), self._builder, self._uses)
            self._refuse(found, f"the result of the {shared[0].op.name} before it has another use")
        return max(self._reasons, key=lambda reason: reason[0])[1]

    def _refuse(self, partial: _Partial, reason: str) -> None:
        self._reasons.append((len(partial.nodes), reason))

    def _at(self, term: Application, node: Node, before: _Partial) -> Iterator[_Partial]:
        if not isinstance(node.op, term.ops):
            self._refuse(before, f"its operand comes from {node.op.name}, not from {term}")
            return
        for operands in self._orders(node):
            for found in self._operands(term, node, operands, before):
                yield _Partial((*found.nodes, node), found.bound)

    def _orders(self, node: Node) -> Iterator[tuple[Value | None, ...]]:
        if not node.op.facts.commutative:
            yield node.inputs
            return
        later_first = sorted(node.operands, key=self._builder.position, reverse=True)
        yield tuple(later_first)
        yield tuple(reversed(later_first))

    def _operands(
        self, term: Application, node: Node, operands: Sequence[Value | None], before: _Partial
    ) -> list[_Partial]:
        found, left = [before], list(operands)
        for wanted in term.operands:
            if isinstance(wanted, Variable) and wanted.variadic:
                return [partial.bind(wanted.name, tuple(left)) for partial in found]
            operand = left.pop(0) if left else None
            found = [more for partial in found for more in self._operand(wanted, operand, node, partial)]
        if left and found:
            self._refuse(before, f"the {node.op.name} has a further operand, {left[0]}")
            return []
        return found

    def _operand(
        self, wanted: Term, operand: Value | None, node: Node, before: _Partial
    ) -> Iterator[_Partial]:
        if isinstance(wanted, Variable):
            if operand is None and not wanted.optional:
                self._refuse(before, f"the {node.op.name} lacks an operand")
            elif before.bound.get(wanted.name, (operand,)) != (operand,):
                self._refuse(before, f"the {node.op.name} reads two different values")
            else:
                yield before.bind(wanted.name, (operand,))
            return
        producer = None if operand is None else self._builder.producer(operand)
        if producer is None or len(producer.outputs) != 1:
            self._refuse(before, f"its operand does not come from {wanted}")
        else:
            yield from self._at(wanted, producer, before)
