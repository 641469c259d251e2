"""Separation of masks from the scores of a softmax or an attention: scores, a mask of kept positions, the masked
operator.

    where(c, never, x), masked_fill          keeps where not c
    x + m, x - m, m a constant               keeps where m > NEVER, the finite part of m is still added
    x + m, m computed from the inputs        the same, where m is a function of one condition or falls to NEVER on data
    layer(x) with such a residual            the same
    the mask of an attention                 the same; the finite part is its bias, keys up to the query make it causal

"Never" is written as -inf, -1e9, the smallest float, -100, ...: they are equivalent for a softmax, but as magnitudes
they would use up the whole range of an integer. Masks are searched through operators that commute with them: data
movement, positive factors, bounds below NEVER, further additions and masks. The result of a log-softmax contains such
numbers, so its sum stays in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import networkx as nx
import torch
from torch import Tensor

from ..ir import Builder, DType, Graph, Node, Op, Source, Value, digraph, rewrite, run
from ..ir.ops.accumulate import Clamp as Bounds
from ..ir.ops.activation import Clamp, Elementwise
from ..ir.ops.attention import Attention
from ..ir.ops.binary import Add, Binary, Div, Maximum, Mul, Sub
from ..ir.ops.compare import Compare, Logic, Where
from ..ir.ops.convert import Cast
from ..ir.ops.elementary import Neg
from ..ir.ops.shape import Copy, Expand, Permute, Reshape, with_free_batch
from ..ir.ops.slicing import Slice
from ..ir.ops.softmax import LogSoftmax, Softmax
from .report import Decision
from .weighted_layers import is_layer

NEVER = -40.0  # exp(-40) is 4e-18, negligible in any result of 16 bits
_ABSORBS = -1e6  # a float32 of this size absorbs the score that is added to it

_MOVEMENT = Reshape | Permute | Expand | Copy
_CHEAP = _MOVEMENT | Slice | Elementwise | Binary | Compare | Logic | Where | Cast
_Made = dict[object, Value]


def is_additive_mask(tensor: Tensor) -> bool:
    """True if a tensor is an additive mask: 0 for kept positions, -inf elsewhere."""
    return tensor.is_floating_point() and bool(((tensor == 0) | (tensor == -inf)).all())


def is_causal_mask(keep: Tensor, queries: int, keys: int) -> bool:
    """True if a mask of kept positions keeps, for each query, the keys up to its own position."""
    if keep.shape[-2:] != (queries, keys):
        return False
    return bool((keep == torch.ones(queries, keys, dtype=torch.bool).tril()).all())


@dataclass(frozen=True)
class LiftedMasks:
    """The graph with masked softmaxes, the decisions, and the names of sums with masks that must stay in float.

    `rests` are the addends of computed masks at kept positions, often zero.
    """

    graph: Graph
    decisions: tuple[Decision, ...]
    in_float: frozenset[str]
    rests: frozenset[str]


def lift_masks(graph: Graph, samples: Sequence[Sequence[Tensor]] = ()) -> LiftedMasks:
    """Separates masks from the operands of softmaxes; `samples` of the inputs show which addends are masks."""
    lifter = _Lifter(_addend_ends(graph, samples))
    lifted = rewrite(graph, lifter.visit)
    return LiftedMasks(lifted, tuple(lifter.decisions), frozenset(lifter.in_float), frozenset(lifter.rests))


@dataclass(frozen=True)
class _Scores:
    """Operands of a softmax: scores without mask, and the kept positions if there is a mask.

    `nevers` are the smallest numbers of additive masks, -inf for the others; `sums` the values with masked scores.
    """

    value: Value
    keep: Value | None = None
    nevers: tuple[float, ...] = ()
    sums: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Choice:
    """A value that is one number if a condition holds and another number otherwise."""

    condition: Value
    on: float
    off: float


@dataclass(frozen=True)
class _Addend:
    """Terms added to scores: masks of kept positions with their smallest numbers, and the finite part, if any."""

    keeps: tuple[Value, ...] = ()
    nevers: tuple[float, ...] = ()
    rest: Value | None = None


@dataclass
class _Lifter:
    ends: Mapping[str, tuple[float, float]]
    decisions: list[Decision] = field(default_factory=list)
    in_float: set[str] = field(default_factory=set)
    rests: set[str] = field(default_factory=set)
    _made: _Made = field(default_factory=dict)

    def visit(self, builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        if isinstance(node.op, Attention):
            return self._attention(builder, node, node.op, operands)
        if not isinstance(node.op, Softmax | LogSoftmax) or len(node.operands) != 1:
            return None
        search = _Search(builder, node.source, self.ends, self._made, self.rests)
        found = search.scores(node.op.operand(operands, "x"))
        if found.keep is None:
            return None
        name = node.output.name
        if isinstance(node.op, LogSoftmax):
            self.in_float.update(found.sums)
            self._decide(
                node,
                False,
                "the result of log_softmax contains the numbers of its mask, which are added in float",
            )
            return None
        self._decide(node, True, "its mask is a separate operand, and the scores have their own range")
        empty = "all" if all(number > _ABSORBS for number in found.nevers) else "uniform"
        scores = search.expanded(found.value, node.output.type.shape)
        return builder.add(replace(node.op, empty=empty), scores, found.keep, name=name, source=node.source)

    def _attention(
        self, builder: Builder, node: Node, op: Attention, operands: tuple[Value | None, ...]
    ) -> Value | None:
        mask, bias = op.optional(operands, "mask"), op.optional(operands, "bias")
        if mask is None or bias is not None:
            return None
        search = _Search(builder, node.source, self.ends, self._made, self.rests)
        q, k, v = (op.operand(operands, name) for name in ("q", "k", "v"))
        is_boolean = mask.type.dtype is DType.BOOL
        found = _Addend((mask,), (-inf,)) if is_boolean else search.addend(mask)
        empty = op.empty if is_boolean else _empty(found.nevers)
        triangular = [keep for keep in found.keeps if search.is_triangular(keep, q, k)]
        keeps = [keep for keep in found.keeps if not search.is_full(keep)]
        is_causal = bool(triangular) and (empty == "zero" or len(triangular) == len(keeps))
        if is_causal:
            keeps = [keep for keep in keeps if keep not in triangular]
        keep = search.both(keeps)
        lifted = replace(op, causal=op.causal or is_causal, empty="zero" if keep is None else empty)
        if is_boolean and keep == mask:
            return None
        self._decide(
            node, True, "its mask is one of kept positions, and its finite part is added to the scores"
        )
        return builder.add(lifted, q, k, v, keep, found.rest, name=node.output.name, source=node.source)

    def _decide(self, node: Node, applied: bool, reason: str) -> None:
        self.decisions.append(Decision("mask", node.output.name, node.source, applied, reason))


@dataclass(frozen=True)
class _Search:
    """The walk from one softmax back to its masks, which adds the required nodes.

    `ends` are the smallest and largest number of each addend on the samples; `made` has nodes made from masks, which
    softmaxes share, and `rests` the names of the remaining parts of computed masks.
    """

    builder: Builder
    source: Source
    ends: Mapping[str, tuple[float, float]]
    made: _Made
    rests: set[str]

    def scores(self, value: Value) -> _Scores:
        node = self.builder.producer(value)
        if (
            node is None
            or len(node.outputs) != 1
            or not value.type.dtype.is_floating
            or value.type.is_quantized
        ):
            return _Scores(value)
        match node.op:
            case Where():
                return self._where(node, value)
            case Add(clamp=clamp) | Sub(clamp=clamp) if _bounds_nothing(clamp):
                return self._sum(node, value)
            case Mul(clamp=None) | Div(clamp=None):
                return self._scaled(node, value)
            case Maximum():
                return self._bounded(node, value)
            case Clamp(low=low, high=high) if _bounds_nothing((low, high)):
                return self._only_if_masked(value, self.scores(node.operand("x")))
            case Reshape() | Permute() | Expand() | Copy():
                return self._moved(node, value)
        if is_layer(node.op) and node.optional("residual") is not None and node.op.clamp is None:
            return self._residual(node, value)
        return _Scores(value)

    def addend(self, value: Value, sign: int = 1) -> _Addend:
        """The masks in an addend of scores, which may be a sum of several; none in a subtracted sum."""
        split = self._split(value, sign)
        if split is not None and not (sign > 0 and self._is_sum(value)):
            keep, rest, never = split
            return _Addend((keep,), (never,), rest)
        node = self.builder.producer(value)
        if node is None or sign < 0:
            return _Addend(rest=value)
        if isinstance(node.op, Add) and node.op.clamp is None:
            a, b = (self.addend(operand) for operand in node.operands)
            rests = [rest for rest in (a.rest, b.rest) if rest is not None]
            total = self.builder.add(Add(), *rests, source=self.source) if len(rests) == 2 else None
            return _Addend(a.keeps + b.keeps, a.nevers + b.nevers, total or next(iter(rests), None))
        if isinstance(node.op, _MOVEMENT):
            old, new = node.operand("x").type.shape, value.type.shape
            found = self.addend(node.operand("x"))
            keeps = tuple(self._movement(node.op, keep, old, new) for keep in found.keeps)
            if found.rest is None or not keeps:
                return replace(found, keeps=keeps, rest=found.rest and value)
            return replace(found, keeps=keeps, rest=self._applied(node.op, self.expanded(found.rest, old)))
        if split is None:
            return _Addend(rest=value)
        keep, rest, never = split
        return _Addend((keep,), (never,), rest)

    def _is_sum(self, value: Value) -> bool:
        """True if a value is moved from a sum, whose parts are examined separately."""
        node = self.builder.producer(value)
        while node is not None and isinstance(node.op, _MOVEMENT):
            node = self.builder.producer(node.operand("x"))
        return node is not None and isinstance(node.op, Add)

    def both(self, keeps: Sequence[Value]) -> Value | None:
        """The positions that all of these masks keep."""
        found: Value | None = None
        for keep in keeps:
            found = keep if found is None else self._applied(Logic("and"), found, keep)
        return found

    def is_full(self, keep: Value) -> bool:
        """True if a mask is a constant that keeps every position."""
        tensor = self.builder.tensor(keep)
        return tensor is not None and bool(tensor.all())

    def is_triangular(self, keep: Value, q: Value, k: Value) -> bool:
        """True if a mask is a constant that keeps, for each query, the keys up to its own position."""
        tensor = self.builder.tensor(keep)
        return tensor is not None and is_causal_mask(tensor, q.type.shape[-2], k.type.shape[-2])

    def expanded(self, value: Value, shape: tuple[int, ...]) -> Value:
        """`value` in the shape to which it broadcasts."""
        if value.type.shape == shape:
            return value
        missing = len(shape) - value.type.rank
        own = value.type.shape
        sizes = (*shape[:missing], *(-1 if n == m else m for n, m in zip(own, shape[missing:], strict=True)))
        return self._applied(Expand(sizes), value)

    def _where(self, node: Node, value: Value) -> _Scores:
        condition, a, b = node.operands
        for never, scores, is_inverse in ((a, b, True), (b, a, False)):
            tensor = self.builder.tensor(never)
            if tensor is not None and tensor.numel() and float(tensor.max()) <= NEVER:
                keep = self._applied(Logic("not"), condition) if is_inverse else condition
                return self._masked(self.scores(scores), keep, -inf, value)
        return _Scores(value)

    def _sum(self, node: Node, value: Value) -> _Scores:
        a, b = node.operands
        sign = -1 if isinstance(node.op, Sub) else 1
        for addend, scores in ((b, a), (a, b)) if sign > 0 else ((b, a),):
            added = self.addend(addend, sign)
            if added.keeps:
                found = self.scores(scores)
                for keep, never in zip(added.keeps, added.nevers, strict=True):
                    found = self._masked(found, keep, never, value)
                if added.rest is None:
                    return found
                return replace(
                    found, value=self.builder.add(Add(), found.value, added.rest, source=self.source)
                )
        left, right = self.scores(a), self.scores(b) if sign > 0 else _Scores(b)
        total = _Scores(value)
        if left.keep is None and right.keep is None:
            return total
        op = Add() if sign > 0 else Sub()
        total = _Scores(self.builder.add(op, left.value, right.value, source=node.source))
        for part in (left, right):
            total = self._joined(total, part)
        return replace(total, sums=(*total.sums, value.name))

    def _scaled(self, node: Node, value: Value) -> _Scores:
        a, b = node.operands
        pairs = ((a, b), (b, a)) if isinstance(node.op, Mul) else ((a, b),)
        for scores, factor in pairs:
            tensor = self.builder.tensor(factor)
            if tensor is None or not bool(((tensor > 0) & tensor.isfinite()).all()):
                continue
            found = self.scores(scores)
            if found.keep is not None:
                scaled = self.builder.add(node.op, found.value, factor, source=node.source)
                return replace(found, value=scaled, sums=(*found.sums, value.name))
        return _Scores(value)

    def _bounded(self, node: Node, value: Value) -> _Scores:
        for scores, bound in (node.operands, node.operands[::-1]):
            tensor = self.builder.tensor(bound)
            if tensor is not None and tensor.numel() and float(tensor.max()) <= NEVER:
                return self._only_if_masked(value, self.scores(scores))
        return _Scores(value)

    def _moved(self, node: Node, value: Value) -> _Scores:
        found = self.scores(node.operand("x"))
        if found.keep is None:
            return _Scores(value)
        scores = self.expanded(found.value, node.operand("x").type.shape)
        moved = self.builder.add(node.op, scores, source=node.source)
        keep = self._movement(node.op, found.keep, node.operand("x").type.shape, value.type.shape)
        return replace(found, value=moved, keep=keep)

    def _residual(self, node: Node, value: Value) -> _Scores:
        split = self._split(node.operand("residual"), 1)
        if split is None:
            return _Scores(value)
        keep, rest, never = split
        scores = self.builder.add(node.op, *node.with_operands(residual=None).inputs, source=node.source)
        if rest is not None:
            scores = self.builder.add(Add(), scores, rest, source=self.source)
        return self._masked(_Scores(scores), keep, never, value)

    def _split(self, addend: Value, sign: int) -> tuple[Value, Value | None, float] | None:
        """Kept positions, the finite part if there is one, and the lowest number, of an addend that is a mask."""
        tensor = self.builder.tensor(addend)
        if tensor is not None:
            return self._split_constant(addend, sign * tensor)
        choice = self._choice(addend)
        if choice is not None:
            low, high = sorted((sign * choice.on, sign * choice.off))
            if not low <= NEVER < high:
                return None
            is_on = sign * choice.on > NEVER
            keep = choice.condition if is_on else self._applied(Logic("not"), choice.condition)
            return keep, None, low
        low, high = self.ends.get(addend.name, (0.0, 0.0))
        if sign < 0:
            return self._split_computed(self._applied(Neg(), addend), -high) if -high <= NEVER else None
        return self._split_computed(addend, low) if low <= NEVER else None

    def _split_constant(self, addend: Value, tensor: Tensor) -> tuple[Value, Value | None, float] | None:
        if not tensor.is_floating_point() or not tensor.numel() or float(tensor.min()) > NEVER:
            return None
        keep = tensor > NEVER
        rest = torch.where(keep, tensor, 0.0)
        kept = self._constant(f"{addend.name}_keep", keep)
        return kept, self._constant(f"{addend.name}_rest", rest) if rest.any() else None, float(tensor.min())

    def _split_computed(self, addend: Value, lowest: float) -> tuple[Value, Value | None, float]:
        dtype = addend.type.dtype.torch
        limit, zero = (self._constant(f"mask_{x:g}", torch.tensor(x, dtype=dtype)) for x in (NEVER, 0.0))
        keep = self._applied(Compare("gt"), addend, limit)
        rest = self._applied(Where(), keep, addend, zero)
        self.rests.add(rest.name)
        return keep, rest, lowest

    def _choice(self, value: Value) -> _Choice | None:
        """The value as a function of one condition."""
        node = self.builder.producer(value)
        if node is None or len(node.outputs) != 1:
            return None
        if isinstance(node.op, Where):
            on, off = self._number(node.operand("a")), self._number(node.operand("b"))
            return None if on is None or off is None else _Choice(node.operand("condition"), on, off)
        if isinstance(node.op, Cast):
            first = node.operand("x")
            return _Choice(first, 1.0, 0.0) if first.type.dtype.torch is torch.bool else self._choice(first)
        if isinstance(node.op, Elementwise):
            return self._through(node.operand("x"), node.op.reference)
        if isinstance(node.op, Binary):
            return self._through_binary(node, node.op)
        if isinstance(node.op, _MOVEMENT):
            choice = self._choice(node.operand("x"))
            if choice is None:
                return None
            old, new = node.operand("x").type.shape, value.type.shape
            return replace(choice, condition=self._movement(node.op, choice.condition, old, new))
        return None

    def _through_binary(self, node: Node, op: Binary) -> _Choice | None:
        a, b = node.operands
        if (number := self._number(b)) is not None:
            return self._through(a, lambda x: op.reference(x, torch.tensor(number, dtype=x.dtype)))
        if (number := self._number(a)) is not None:
            return self._through(b, lambda x: op.reference(torch.tensor(number, dtype=x.dtype), x))
        return None

    def _through(self, value: Value, function: Callable[[Tensor], Tensor]) -> _Choice | None:
        choice = self._choice(value)
        if choice is None:
            return None
        on, off = (float(function(torch.tensor(x, dtype=torch.float32))) for x in (choice.on, choice.off))
        return _Choice(choice.condition, on, off)

    def _number(self, value: Value) -> float | None:
        """The number that fills a constant."""
        tensor = self.builder.tensor(value)
        if tensor is None or not tensor.numel() or bool((tensor != tensor.flatten()[0]).any()):
            return None
        return float(tensor.flatten()[0])

    def _movement(self, op: Op, mask: Value, old: tuple[int, ...], new: tuple[int, ...]) -> Value:
        """A mask that broadcasts to `old`, after the movement from `old` to `new`."""
        match op:
            case Reshape():
                same = next(
                    (i for i, (n, m) in enumerate(zip(old[::-1], new[::-1], strict=False)) if n != m),
                    min(len(old), len(new)),
                )
                own = (*(1,) * (len(old) - mask.type.rank), *mask.type.shape)
                kept = own[len(own) - same :]
                spread = self.expanded(mask, (*old[: len(old) - same], *kept))
                shape = (*new[: len(new) - same], *kept)
                return self._applied(Reshape(with_free_batch(spread.type, shape)), spread)
            case Permute(order=order):
                own = (*(1,) * (len(old) - mask.type.rank), *mask.type.shape)
                ranked = mask if own == mask.type.shape else self._applied(Reshape(own), mask)
                return self._applied(Permute(order), ranked)
            case _:
                return mask

    def _masked(self, scores: _Scores, keep: Value, never: float, value: Value) -> _Scores:
        return self._joined(scores, _Scores(value, keep, (never,), (value.name,)))

    def _joined(self, scores: _Scores, other: _Scores) -> _Scores:
        """`scores` with the masks of `other`, too."""
        if scores.keep is None or other.keep is None:
            keep = scores.keep or other.keep
        else:
            keep = self._applied(Logic("and"), scores.keep, other.keep)
        return _Scores(scores.value, keep, (*scores.nevers, *other.nevers), (*scores.sums, *other.sums))

    def _only_if_masked(self, value: Value, found: _Scores) -> _Scores:
        return _Scores(value) if found.keep is None else found

    def _applied(self, op: Op, *operands: Value) -> Value:
        """A node, or a constant if the operands are constants; created once."""
        key = (op, *operands)
        if key not in self.made:
            tensors = [self.builder.tensor(value) for value in operands]
            known = [tensor for tensor in tensors if tensor is not None]
            if len(known) < len(operands):
                self.made[key] = self.builder.add(op, *operands, source=self.source)
            else:
                result = op.reference(*known)
                assert isinstance(result, Tensor)
                self.made[key] = self._constant(f"{operands[0].name}_{op.name}", _without_repetition(result))
        return self.made[key]

    def _constant(self, name: str, tensor: Tensor) -> Value:
        if name not in self.made:
            self.made[name] = self.builder.constant(name, tensor)
        return self.made[name]


def _empty(nevers: Sequence[float]) -> str:
    """Result of an attention without kept positions, by the smallest numbers of its masks."""
    if all(number == -inf for number in nevers):
        return "zero"
    return "all" if all(number > _ABSORBS for number in nevers) else "uniform"


def _bounds_nothing(bounds: Bounds) -> bool:
    """True if the bounds clip at most masked scores."""
    return bounds is None or (bounds[0] <= NEVER and bounds[1] == inf)


def _addends_of(node: Node) -> Sequence[Value | None]:
    if isinstance(node.op, Attention):
        return (node.optional("mask"),)
    return (node.optional("residual"),) if is_layer(node.op) else node.operands


def _without_repetition(tensor: Tensor) -> Tensor:
    """The smallest tensor that broadcasts to this one."""
    for axis in range(tensor.ndim):
        first = tensor.narrow(axis, 0, min(1, tensor.shape[axis]))
        if bool((tensor == first).all()):
            tensor = first
    return tensor.contiguous()


def _addend_ends(graph: Graph, samples: Sequence[Sequence[Tensor]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest number, on the samples, of addends that elementwise operators compute from the inputs."""
    if not any(isinstance(node.op, Softmax | LogSoftmax | Attention) for node in graph.nodes):
        return {}
    cheap = {v.name for v in graph.inputs}
    for node in graph.nodes:
        if isinstance(node.op, _CHEAP) and all(
            v.name in cheap or graph.is_constant(v) for v in node.operands
        ):
            cheap.update(v.name for v in node.outputs)
    addends = {
        v.name: v
        for node in graph.nodes
        if isinstance(node.op, Add | Sub | Attention) or is_layer(node.op)
        for v in _addends_of(node)
        if v is not None and v.name in cheap and v.type.dtype.is_floating and v.type.numel
    }
    view = digraph(graph)
    needed = set(addends).union(*(nx.ancestors(view, name) for name in addends))
    nodes = tuple(node for index, node in enumerate(graph.nodes) if index in needed)
    names = {vertex for vertex in needed if isinstance(vertex, str)}
    part = Graph(graph.inputs, tuple(addends.values()), nodes, graph.params.only(names))
    ends: dict[str, tuple[float, float]] = {}
    for sample in samples if addends else ():
        with torch.no_grad():
            found = run(part, sample)
        for name, tensor in zip(addends, found, strict=True):
            low, high = (float(end) for end in tensor.aminmax())
            before = ends.get(name, (low, high))
            ends[name] = min(low, before[0]), max(high, before[1])
    return ends
