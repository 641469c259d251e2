"""The form of graphs whose weights are integers and whose activations are float.

The variable of a dequantized constant, in float32 or cast to half precision, is the submodule with its integers;
linear layers and embeddings call its methods, and all other nodes read its reals. The rounding of activations is part
of the linear layers if nothing else reads its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from math import prod
from types import ModuleType

import torch
from torch import Tensor

from ...ir import CodedNumbers, DType, Graph, LazyTensor, Node, Numbers, TensorType, Value
from ...ir.ops.convert import Cast
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.norm import RmsNorm
from ...ir.ops.quantize import Dequantize, FakeQuantizePerToken
from ...ir.packing import BLOCK_ROWS, packed_shape
from ..packed_linear import PackedForm, pack_codes, pack_scales
from . import prelude_library, prelude_weight_only
from .forward import clamped
from .layers import Argument, LayerKind, construct, layer_kind
from .names import Path
from .style import FloatStyle, Strings

_HALF = (DType.F16, DType.BF16)
_DECODING = ("scale_step", "scale_offset")  # tensors that decode codes of scales


def is_weight_only(graph: Graph) -> bool:
    """True if all quantized values of a graph are constants that only `dequantize` nodes read."""
    quantized = [v for node in graph.nodes for v in (*node.operands, *node.outputs) if v.type.is_quantized]
    readers = (user for value in quantized for user in graph.users[value.name])
    return (
        bool(quantized)
        and all(graph.is_constant(value) for value in quantized)
        and all(isinstance(user.op, Dequantize) for user in readers)
    )


class WeightOnlyStyle(FloatStyle):
    """Variables are reals, and for integer weights the submodules that store them.

    `_held` has the values that are such submodules, with the element type to which their reals are cast. Linear
    layers with the same input are a group if a kernel multiplies with all their weights in one call.
    """

    preludes: tuple[ModuleType, ...] = (prelude_library, prelude_weight_only)

    def __init__(self, graph: Graph) -> None:
        self._modules = {node.output.name for node in graph.nodes if _holds_matrix(node)}
        self._held = dict.fromkeys(self._modules, "")
        self._held |= {
            node.output.name: str(node.output.type.dtype.torch)
            for node in graph.nodes
            if isinstance(node.op, Cast)
            and node.operand("x").name in self._modules
            and node.output.type.dtype in _HALF
        }
        self._rounded = {
            node.output.name
            for node in graph.nodes
            if isinstance(node.op, FakeQuantizePerToken) and self._is_left_to_readers(graph, node.output)
        }
        self.groups = self._joined(graph)

    def kind(self, node: Node) -> LayerKind | None:
        """A submodule for an integer weight; linear layers and embeddings that read one have no submodule of their own.

        RMS norms are those of the prelude.
        """
        if node.outputs[0].name in self._modules:
            return _weight_kind(node)
        kind = None if self._reads_held(node) else layer_kind(node)
        if kind is not None and isinstance(node.op, RmsNorm):
            return replace(kind, constructor=kind.constructor.replace("nn.RMSNorm", "RmsNorm"))
        return kind

    def read(self, node: Node, operand: int, variable: str) -> str:
        """The variable, or the reals of its weight."""
        value = node.inputs[operand]
        assert value is not None
        return self.leave(value, variable)

    def leave(self, value: Value, variable: str) -> str:
        """Like `read`, for an output of the graph."""
        dtype = self._held.get(value.name)
        return variable if dtype is None else f"{variable}.reals({dtype})"

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """Linear layers and embeddings of integer weights, and the rounding that such layers include."""
        name = node.outputs[0].name
        if name in self._rounded or (name in self._held and name not in self._modules):
            return node.op.operand(operands, "x")
        if not self._reads_held(node):
            return None
        op, weight = node.op, node.op.operand(operands, "weight")
        if isinstance(op, Embedding):
            rows = f"{weight}.rows({op.operand(operands, 'indices')})"
            dtype = self._held[node.operand("weight").name]
            return f"{rows}.to({dtype})" if dtype else rows
        assert isinstance(op, Linear)
        rounded = "rounded=True" if node.operand("x").name in self._rounded else None
        if node.output.name in self.groups:
            return self._joined_call(self.groups[node.output.name], operands, rounded)
        read = (op.operand(operands, "x"), op.optional(operands, "bias"), rounded)
        text = f"{weight}.linear({', '.join(t for t in read if t is not None)})"
        residual = op.optional(operands, "residual")
        return clamped(text if residual is None else f"{text} + {residual}", op.clamp)

    def _joined_call(self, group: Sequence[Node], operands: Strings, rounded: str | None) -> str:
        given = iter(operands)
        read = [list(islice(given, len(node.inputs))) for node in group]
        weights = [node.op.operand(texts, "weight") for node, texts in zip(group, read, strict=True)]
        biases = [node.op.optional(texts, "bias") for node, texts in zip(group, read, strict=True)]
        lists = [f"[{', '.join(map(str, texts))}]" for texts in (weights, biases) if any(texts)]
        arguments = [group[0].op.operand(read[0], "x"), *lists, *([rounded] if rounded else [])]
        return f"joined_linear({', '.join(arguments)})"

    def _joined(self, graph: Graph) -> dict[str, tuple[Node, ...]]:
        """Linear layers of one form, each with all layers that are computed with it.

        They read the same input, as do all linear layers between them, so that results are kept only for a short
        time.
        """
        found: dict[tuple[int, Value, int, int], list[Node]] = {}
        layers = [node for node in graph.nodes if isinstance(node.op, Linear)]
        for place, (_, run) in enumerate(
            groupby(layers, lambda node: _before_rounding(graph, node.operand("x")))
        ):
            for node in run:
                form = self._form(graph, node)
                if form is not None:
                    found.setdefault((place, *form), []).append(node)
        return {
            node.output.name: tuple(nodes) for nodes in found.values() if len(nodes) > 1 for node in nodes
        }

    def _form(self, graph: Graph, node: Node) -> tuple[Value, int, int] | None:
        """Input, bits and group size of a linear layer; None if its product is not one with only packed integers."""
        bias = node.optional("bias")
        if node.op != Linear() or node.optional("residual") is not None or not self._reads_held(node):
            return None
        producer = graph.producers[node.operand("weight").name]
        while not isinstance(producer.op, Dequantize):
            producer = graph.producers[producer.operand("x").name]
        form = PackedForm.of(producer.operand("x").type)
        if form is None or (bias is not None and not graph.is_constant(bias)):
            return None
        return node.operand("x"), form.bits, form.group_size

    def _reads_held(self, node: Node) -> bool:
        """True for a linear layer or embedding whose only held operand is its weight."""
        if not isinstance(node.op, Linear | Embedding):
            return False
        held = [value for value in node.operands if value.name in self._held]
        return held == [node.operand("weight")]

    def _is_left_to_readers(self, graph: Graph, value: Value) -> bool:
        """True if only linear layers of integer weights read a value, as their input."""
        readers = graph.users.get(value.name, ())
        is_input = (
            isinstance(user.op, Linear)
            and self._reads_held(user)
            and user.operands.count(value) == 1
            and user.operand("x") == value
            for user in readers
        )
        return value not in graph.outputs and all(is_input)


def _before_rounding(graph: Graph, value: Value) -> Value:
    producer = graph.producers.get(value.name)
    is_rounded = producer is not None and isinstance(producer.op, FakeQuantizePerToken)
    return producer.operand("x") if producer is not None and is_rounded else value


def packed_weight(type: TensorType, read: Callable[[], Tensor]) -> LazyTensor:
    """The codes of a weight in the packed form, packed at each use from the integers that `read` returns."""
    assert type.quantization is not None
    bits, lowest, shape = type.quantization.bits, type.quantization.qmin, packed_shape(type)
    size = type.shape[-1] // shape[1]
    return LazyTensor(shape, torch.uint8, lambda: pack_codes(read(), bits, size, lowest=lowest))


def _holds_matrix(node: Node) -> bool:
    """True for a `dequantize` of constant matrices that `IntegerWeight` can store."""
    if not isinstance(node.op, Dequantize):
        return False
    type = node.operand("x").type
    grid = type.quantization
    assert grid is not None
    if type.rank < 2 or grid.bits > 8 or grid.axis != 0:
        return False
    if len(grid.zero_point) > 1 and grid.zero_point.dtype is not DType.I8:
        return False
    return type.shape[-1] % grid.group_size == 0 if grid.group_size is not None else type.rank == 2


def _weight_kind(node: Node) -> LayerKind:
    type = node.operand("x").type
    assert type.quantization is not None
    encoding = type.quantization
    rows = prod(type.shape[:-1])
    groups = len(encoding.scale) // rows
    packed = (-(-rows // BLOCK_ROWS), groups, BLOCK_ROWS)
    arguments: dict[str, Argument] = {"bits": encoding.bits, "group_size": type.shape[-1] // groups}
    state, name = _stored_scales(encoding.scale, rows, packed), "PackedWeight"
    if state["scale"].dtype is not torch.float32:
        arguments["dtype"] = str(state["scale"].dtype)
    if "scale_step" in state:
        arguments["steps"] = state["scale_step"].shape[0]
    if encoding.levels is not None:
        levels = encoding.levels
        state["levels"] = LazyTensor((len(levels),), torch.float32, lambda: levels.tensor(torch.float32))
        name, arguments["levels"] = "DecodedWeight", len(levels)
    elif not encoding.is_symmetric:
        zeros = encoding.zero_point.tensor(torch.int8).expand(len(encoding.scale))
        state["zero"] = LazyTensor(packed, torch.int8, lambda: pack_scales(zeros, rows))
        name = "DecodedWeight"
    return LayerKind(construct(name, *type.shape, **arguments), {"codes": "x"}, state=state, is_held=True)


def _stored_scales(scale: Numbers[float], rows: int, packed: tuple[int, ...]) -> dict[str, LazyTensor]:
    """Tensors of the scales: of shape `packed`, or codes [rows, groups] and the tensors that decode them."""
    if not isinstance(scale, CodedNumbers):
        dtype = scale.dtype.torch if scale.dtype in _HALF else torch.float32
        return {"scale": LazyTensor(packed, dtype, lambda: pack_scales(scale.tensor(dtype), rows))}
    codes, *decoding = scale.parts
    state = {"scale": LazyTensor((rows, packed[1]), codes.dtype.torch, lambda: codes.tensor().view(rows, -1))}
    for name, part in zip(_DECODING, decoding, strict=False):
        state[name] = LazyTensor((len(part),), part.dtype.torch, part.tensor)
    return state
