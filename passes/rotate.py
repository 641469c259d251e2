"""The pass `rotate`: the residual stream of a network with RMS norms in another orthogonal basis (QuaRot).

    h' = h R,   R R^T = I:   rms(h R) = rms(h) R
    writers    W' = R^T W, b' = R^T b;   embedding table E' = E R
    readers    W' = W diag(g) R, where g is the weight of the norm, which becomes 1

R is a Hadamard matrix with random signs: outliers of single channels are spread over all of them. For a width of 2^k
m, R is its Kronecker product with a random orthogonal matrix of size m. A stream is the set of values that additions
join; it is rotated as a whole, or not at all if one of its readers or writers does not commute with R. A norm whose
readers cannot absorb g and R, such as a head that shares its weight with the embedding, is followed by a linear layer
of R^T diag(g) R, or diag(g) R, with width^2 weights.

Source: Ashkboos et al., QuaRot: Outlier-free 4-bit inference in rotated LLMs, NeurIPS 2024. Its rotations at run time,
inside attention and before the last layer of a block, are not implemented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ir import Builder, Entry, Graph, LazyTensor, Node, Source, Value, rewrite
from ..ir.ops.binary import Add, Mul
from ..ir.ops.embedding import Embedding
from ..ir.ops.linear import Linear
from ..ir.ops.norm import RmsNorm, RowNorm
from ..ir.ops.shape import Copy, Permute, Reshape
from ..ir.ops.slicing import Select, Slice
from ..ir.spill import spilled
from ..specs.options import RotateOptions
from .base import Context, PassResult, register
from .channel_scales import is_own
from .report import Decision, PassReport

_MOVES = (Copy, Permute, Reshape, Select, Slice)


@register(RotateOptions)
def rotate(graph: Graph, options: RotateOptions, context: Context) -> PassResult:
    """An equivalent graph with each residual stream in a rotated basis; streams that cannot be rotated are reported."""
    generator = torch.Generator().manual_seed(options.seed)
    decisions, seen = list[Decision](), set[str]()
    rotated = graph
    for node in graph.nodes:
        if not isinstance(node.op, RowNorm) or node.operand("x").name in seen:
            continue
        stream = _find_stream(graph, node.operand("x"))
        seen |= stream.values.keys() if isinstance(stream, _Stream) else {node.operand("x").name}
        if isinstance(stream, str):
            decisions.append(Decision("rotate", node.output.name, node.source, False, stream))
            continue
        rotation = random_rotation(stream.width, generator)
        rotated = _rotated(rotated, stream, rotation)
        shared = [norm for norm in stream.norms if not _takes_rotation(graph, norm)]
        added = f", {len(shared)} with a linear layer of {stream.width}x{stream.width}" if shared else ""
        text = (
            f"residual stream of {stream.width}: {len(stream.writers)} layers write it, "
            f"{len(stream.norms)} norms{added} and {len(stream.readers)} layers read it"
        )
        decisions.append(Decision("rotate", node.output.name, node.source, True, text))
    return PassResult(rotated, PassReport("rotate", tuple(decisions)))


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix [width, width], float64: a Hadamard matrix with random signs of rows.

    The factor of a width that is not a power of two is a random orthogonal matrix.
    """
    odd = width
    while odd % 2 == 0:
        odd //= 2
    drawn = torch.randn(odd, odd, generator=generator, dtype=torch.float64)
    matrix = torch.linalg.qr(drawn).Q.contiguous() if odd > 1 else torch.ones(1, 1, dtype=torch.float64)
    block = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    while len(matrix) < width:
        matrix = torch.kron(block, matrix)
    signs = torch.randint(0, 2, (width, 1), generator=generator) * 2 - 1
    return matrix * signs


@dataclass
class _Stream:
    """Values that additions join, and the nodes around them."""

    width: int
    values: dict[str, Value] = field(default_factory=dict)
    writers: list[Node] = field(default_factory=list)
    norms: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)


def _find_stream(graph: Graph, start: Value) -> _Stream | str:
    """All values of the stream of `start`; else the reason why it cannot be rotated."""
    stream, waiting = _Stream(start.type.shape[-1]), [start]
    while waiting:
        value = waiting.pop()
        if value.name in stream.values:
            continue
        if value.type.shape[-1:] != (stream.width,):
            return (
                f"{value} of shape {value.type.shape} is added to a residual stream of width {stream.width}"
            )
        if value in graph.outputs:
            return f"{value} of the residual stream is an output of the model"
        stream.values[value.name] = value
        joined = _made_by(graph, value, stream)
        if isinstance(joined, str):
            return joined
        waiting += joined
        for node in dict.fromkeys(graph.users.get(value.name, ())):
            joined = _read_by(graph, value, node, stream)
            if isinstance(joined, str):
                return joined
            waiting += joined
    return _with_tables(graph, stream)


def _made_by(graph: Graph, value: Value, stream: _Stream) -> list[Value] | str:
    node = graph.producers.get(value.name)
    if node is None:
        return f"{value}, an input or a constant, is part of the residual stream"
    if isinstance(node.op, Embedding):
        stream.writers.append(node)
        return []
    if isinstance(node.op, Linear) and node.op.clamp is None:
        if not all(is_own(graph, v) for v in _constants(node)):
            return f"the weight of {_place(node)} is shared, or not float"
        stream.writers.append(node)
        residual = node.optional("residual")
        return [] if residual is None else [residual]
    joined = _joined(graph, node)
    return f"{_place(node)} computes a part of the residual stream" if joined is None else joined


def _read_by(graph: Graph, value: Value, node: Node, stream: _Stream) -> list[Value] | str:
    if isinstance(node.op, RmsNorm) and node.op.dimensions(value.type.rank) == (value.type.rank - 1,):
        weight = node.optional("weight")
        if weight is not None and not graph.is_constant(weight):
            return f"the weight of {_place(node)} is computed"
        stream.norms.append(node)
        return []
    if isinstance(node.op, RowNorm):
        return f"{_place(node)} subtracts the mean, or normalizes several dimensions: only RMS norms commute"
    if isinstance(node.op, Linear) and node.optional("residual") == value and node.operand("x") != value:
        return [node.output]
    if isinstance(node.op, Linear) and node.operand("x") == value and node.optional("residual") != value:
        if not is_own(graph, node.operand("weight")):
            return f"the weight of {_place(node)} is shared, or not float"
        stream.readers.append(node)
        return []
    if _joined(graph, node) is None:
        return f"{_place(node)} reads the residual stream"
    return [node.output]


def _joined(graph: Graph, node: Node) -> list[Value] | None:
    """Operands in the same stream as the result of an addition, a movement or a product with a number."""
    if isinstance(node.op, Add) and node.op.clamp is None:
        return list(node.operands)
    if isinstance(node.op, Mul) and node.op.clamp is None:
        numbers = [v for v in node.operands if graph.is_constant(v) and v.type.numel == 1]
        return [v for v in node.operands if v not in numbers] if len(numbers) == 1 else None
    if isinstance(node.op, _MOVES):
        x, y = node.operands[0], node.output
        return [x] if _keeps_last(node) and x.type.shape[-1:] == y.type.shape[-1:] else None
    return None


def _keeps_last(node: Node) -> bool:
    """True if a movement keeps the elements of the last dimension together and in order."""
    rank = node.operands[0].type.rank
    match node.op:
        case Permute(order=order):
            return order[-1] == rank - 1
        case Select(axis=axis) | Slice(axis=axis):
            return axis != rank - 1
        case _:
            return True


def _with_tables(graph: Graph, stream: _Stream) -> _Stream | str:
    """The stream, unless an embedding table has other readers than the stream and the heads after its norms."""
    norms = {norm.output.name for norm in stream.norms}
    for node in stream.writers:
        table = node.operand("weight")
        if not isinstance(node.op, Embedding):
            continue
        if not graph.is_constant(table) or not table.type.dtype.is_floating or table in graph.outputs:
            return f"the table of {_place(node)} is computed, or not float"
        for user in graph.users[table.name]:
            is_head = isinstance(user.op, Linear) and user.operand("x").name in norms
            if user not in stream.writers and not is_head:
                return f"the table of {_place(node)} is read by {_place(user)}, too"
    return stream


def _takes_rotation(graph: Graph, norm: Node) -> bool:
    """True if only linear layers with unshared weights read a norm."""
    readers = graph.users.get(norm.output.name, ())
    return norm.output not in graph.outputs and all(
        isinstance(user.op, Linear)
        and user.operand("x") == norm.output
        and user.operands.count(norm.output) == 1
        and is_own(graph, user.operand("weight"))
        for user in readers
    )


def _rotated(graph: Graph, stream: _Stream, rotation: Tensor) -> Graph:
    """The graph with this stream in the basis of `rotation`."""
    params: dict[str, Entry] = {}

    def keep(value: Value, tensor: Tensor) -> None:
        is_lazy = isinstance(graph.params.entry(value.name), LazyTensor)
        params[value.name] = spilled(tensor) if is_lazy else tensor

    def change(value: Value, left: Tensor | float, right: Tensor) -> None:
        entry = params.get(value.name, graph.params.entry(value.name))
        tensor = entry if isinstance(entry, Tensor) else entry.read()
        keep(value, (tensor.double() * left) @ right)

    tables = {node.operand("weight") for node in stream.writers if isinstance(node.op, Embedding)}
    for table in tables:
        change(table, 1.0, rotation)
    for node in stream.writers:
        for value in _constants(node) if isinstance(node.op, Linear) else ():
            keep(value, rotation.T @ graph.params[value.name].double())
    for node in stream.readers:
        change(node.operand("weight"), 1.0, rotation)
    layers: dict[str, _Layers] = {}
    for norm in stream.norms:
        weight = norm.optional("weight")
        gain = (
            torch.ones(stream.width, dtype=torch.float64) if weight is None else graph.tensor(weight).double()
        )
        readers = graph.users.get(norm.output.name, ())
        if _takes_rotation(graph, norm):
            for reader in readers:
                change(reader.operand("weight"), gain, rotation)
            layers[norm.output.name] = _Layers()
        else:
            back = gain[:, None] * rotation
            heads = frozenset(n.output.name for n in readers if n.optional("weight") in tables)
            layers[norm.output.name] = _Layers(back, rotation.T @ back, heads)
    for name, entry in params.items():
        tensor, dtype = entry if isinstance(entry, Tensor) else entry.read(), graph.params.entry(name).dtype
        graph = graph.with_params({name: tensor.to(dtype).contiguous()})
    return _with_layers(graph, layers)


@dataclass(frozen=True)
class _Layers:
    """Matrices after a norm without its weight: none, or `back` to the old basis, and `head` for rotated tables."""

    back: Tensor | None = None
    head: Tensor | None = None
    heads: frozenset[str] = frozenset()  # results of the layers that read rotated tables


def _with_layers(graph: Graph, layers: Mapping[str, _Layers]) -> Graph:
    """The graph with norms without weights, and linear layers after the norms that need them."""
    bare, sources = dict[str, Value](), dict[str, Source]()
    followed = {head: norm for norm, found in layers.items() for head in found.heads}

    def follow(builder: Builder, norm: str, matrix: Tensor) -> Value:
        x = bare[norm]
        weight = builder.constant(f"{norm}.rotation", matrix.to(x.type.dtype.torch))
        return builder.add(Linear(), x, weight, name=f"{norm}_rotated", source=sources[norm])

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        name = node.outputs[0].name
        if name in layers:
            (bare[name],) = builder.keep(node, operands[:1])
            back, sources[name] = layers[name].back, node.source
            return (bare[name] if back is None else follow(builder, name, back),)
        head = layers[followed[name]].head if name in followed else None
        if head is None:
            return None
        x = follow(builder, followed[name], head)
        return builder.keep(node, node.with_operands(x=x).inputs[:1] + operands[1:])

    return rewrite(graph, visit)


def _constants(node: Node) -> list[Value]:
    """Weight and bias of a linear layer."""
    return [value for value in (node.operand("weight"), node.optional("bias")) if value is not None]


def _place(node: Node) -> str:
    return f"{node.op.name} {node.source.module or node.outputs[0].name}"
