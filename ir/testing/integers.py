"""The simplest conversion of a float graph to an integer graph, for tests.

Every value gets the encoding that covers its range in one run of the float graph. It shares no code with the
quantization pass, so that each can be tested against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..builder import Builder
from ..element_type import DType
from ..encoding import Encoding
from ..errors import OverflowBoundError
from ..graph import Graph, Node
from ..interpret import run
from ..ops.accumulate import bias_quantization
from ..ops.attention import Attention
from ..ops.attention_form import SCORES
from ..ops.base import Quantized
from ..ops.binary import Mul
from ..ops.conv import Conv, ConvTranspose
from ..ops.linear import Linear
from ..ops.matmul import MatMul
from ..ops.prelu import Prelu
from ..ops.quantize import Dequantize, Quantize, Requantize
from ..ops.recurrent import Recurrent
from ..ops.recurrent_form import STATE_BITS, cell_encoding
from ..tensor_type import Value

_FINEST = (
    64  # an output step is at least this part of the step of a summed operand, as Requant and Rescale require
)

_LARGEST_SCORE = 70.0  # of the scores of an attention, before saturation

_COARSEST = 1 << 14  # largest ratio of the step of a moved value to that of the result, for Rescale


def to_integers(graph: Graph, inputs: Sequence[Tensor]) -> Graph:
    """`graph` computing on 8-bit integers wherever its operators can, with float inputs and outputs.

    States of recurrent layers have 16 bits.

    `inputs` is one sample, whose values decide the encodings. Data movement over several operands uses the encoding
    of the first operand, unless another operand is too coarse for that.
    """
    return _Conversion(graph, inputs).graph()


class _Conversion:
    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self._old = graph
        self._builder = Builder(params=graph.params)
        self._reals: dict[str, Value] = {v.name: v for v in graph.constants}
        self._integers: dict[str, Value] = {}
        self._seen: dict[str, Tensor] = {v.name: t for v, t in zip(graph.inputs, inputs, strict=True)}
        run(graph, inputs, observe=lambda value, tensor: self._seen.update({value.name: tensor}))

    def graph(self) -> Graph:
        for value in self._old.inputs:
            self._reals[value.name] = self._builder.input(value.name, value.type)
        for node in self._old.nodes:
            self._convert(node)
        outputs = [self._real(value) for value in self._old.outputs]
        return self._builder.build(outputs, output_names=self._old.output_names)

    def _convert(self, node: Node) -> None:
        floats = all(v.type.dtype is DType.F32 for v in node.outputs)
        if node.op.quantized is Quantized.NEVER or not floats:
            self._keep(node, [v and self._real(v) for v in node.inputs], self._reals)
        elif node.op.quantized is Quantized.MOVE:
            self._move(node)
        elif isinstance(node.op, Recurrent):
            self._recur(node, node.op)
        elif isinstance(node.op, Attention) and not self._attends(node, node.op):
            self._keep(node, [v and self._real(v) for v in node.inputs], self._reals)
        else:
            self._compute(node)

    def _keep(self, node: Node, operands: Sequence[Value | None], into: dict[str, Value]) -> None:
        types = node.op.infer(*(v and v.type for v in operands))
        results = self._builder.append(node.op, operands, types, source=node.source)
        into.update({old.name: new for old, new in zip(node.outputs, results, strict=True)})

    def _move(self, node: Node) -> None:
        data = [v for v in node.operands if v.type.dtype is DType.F32]
        encoding = self._moved_encoding(data)
        moved = [
            v and (self._encoded(v, encoding) if v.type.dtype is DType.F32 else self._real(v))
            for v in node.inputs
        ]
        self._keep(node, moved, self._integers)

    def _moved_encoding(self, data: Sequence[Value]) -> Encoding:
        """The encoding of the first operand, or of the coarsest one if its steps are too large for the first one's."""
        found = [self._integer(v).type.quantization for v in data]
        encodings = [encoding for encoding in found if encoding is not None]
        coarsest = max(encodings, key=lambda encoding: encoding.scale[0])
        return coarsest if coarsest.scale[0] > _COARSEST * encodings[0].scale[0] else encodings[0]

    def _compute(self, node: Node) -> None:
        if isinstance(node.op, Conv | ConvTranspose | Linear):
            operands = self._layer_operands(node)
        elif isinstance(node.op, Prelu):
            x, slope = node.operands
            operands = [self._integer(x), self._constant(slope, _symmetric(self._old.tensor(slope)))]
        elif isinstance(node.op, Attention):
            mask, bias = node.optional("mask"), node.optional("bias")
            operands = [self._integer(v) for v in node.operands[:3]]
            operands += [mask and self._reals[mask.name], bias and self._encoded(bias, SCORES)]
        else:
            operands = [
                self._integer(v)
                if v is not None and v.type.dtype.is_floating and not node.op.stays_real(index)
                else v and self._reals[v.name]
                for index, v in enumerate(node.inputs)
            ]
        high = float(self._seen[node.output.name].max()) if node.output.type.numel else 0.0
        encoding = node.op.result_encoding(high) or self._result_encoding(node, operands)
        self._integers[node.output.name] = self._builder.add(
            node.op, *operands, quantization=encoding, source=node.source
        )

    def _attends(self, node: Node, op: Attention) -> bool:
        """True if an attention has an integer form that represents its scores."""
        mask, bias = node.optional("mask"), node.optional("bias")
        if mask is not None and mask.type.dtype.is_floating:
            return False
        q, k = (self._tensor(node.operand(name)) for name in ("q", "k"))
        largest = float(op.largest_score(q, k, None if bias is None else self._tensor(bias)))
        return largest < _LARGEST_SCORE

    def _recur(self, node: Node, op: Recurrent) -> None:
        """Converts a single recurrent layer; several layers, or initial states outside the encoding of states, stay
        in float.
        """
        y, _, *cell = (self._seen[v.name] for v in node.outputs)
        state = op.result_encoding(1.0) or _symmetric(2 * y, bits=STATE_BITS)
        first = [None if v is None else self._tensor(v) for v in op.states_of(node.inputs)]
        is_outside = first[0] is not None and float(first[0].abs().max()) > state.scale[0] * state.qmax
        if not op.is_single or is_outside:
            self._keep(node, [v and self._real(v) for v in node.inputs], self._reals)
            return
        largest = [float(t.abs().max()) for t in (*cell, *first[1:]) if t is not None]
        last = [state, *(cell_encoding(2 * max(largest)) for _ in cell)]
        x, matrices = self._integer(node.operand("x")), op.matrices_of(node.inputs)
        states = [v and self._encoded(v, q) for v, q in zip(op.states_of(node.inputs), last, strict=True)]
        integers = [
            self._constant(v, _symmetric(self._old.tensor(v), axis=0)) for v in matrices if v is not None
        ]
        read = (x.type.quantization, state)
        biases = [
            self._constant(bias, bias_quantization(q, weight.type.quantization))
            for bias, q, weight in zip(op.biases_of(node.inputs), read, integers, strict=False)
            if bias is not None and q is not None and weight.type.quantization is not None
        ]
        operands = [x, *states, *integers[:2], *biases, *integers[2:]]
        types = [t.quantized(q) for t, q in zip(node.output_types, [state, *last], strict=True)]
        try:
            op.check_quantized([None if v is None else v.type for v in operands], types)
        except OverflowBoundError:
            self._keep(node, [v and self._real(v) for v in node.inputs], self._reals)
            return
        results = self._builder.append(op, operands, types, source=node.source)
        self._integers.update({old.name: new for old, new in zip(node.outputs, results, strict=True)})

    def _tensor(self, value: Value) -> Tensor:
        return self._old.tensor(value) if self._old.is_constant(value) else self._seen[value.name]

    def _layer_operands(self, node: Node) -> list[Value | None]:
        x, weight = node.operand("x"), node.operand("weight")
        bias, residual = node.optional("bias"), node.optional("residual")
        assert isinstance(node.op, Conv | ConvTranspose | Linear)
        axis, group_size = node.op.channel_scales(weight.type) or (None, None)
        integers = self._constant(
            weight, _symmetric(self._old.tensor(weight), axis=axis, group_size=group_size)
        )
        data, encoding = self._integer(x), integers.type.quantization
        assert data.type.quantization is not None and encoding is not None
        bias_encoding = bias_quantization(data.type.quantization, encoding)
        return [
            data,
            integers,
            bias and self._constant(bias, bias_encoding),
            residual and self._integer(residual),
        ]

    def _result_encoding(self, node: Node, operands: Sequence[Value | None]) -> Encoding:
        scales = [max(v.type.quantization.scale) for v in operands if v and v.type.quantization]
        if isinstance(node.op, Conv | ConvTranspose | Linear):
            coarsest = max([prod(scales[:2]), *(scales[3:] if node.optional("residual") else [])])
        else:
            coarsest = prod(scales) if isinstance(node.op, Mul | MatMul) else max(scales)
        return _covering(self._seen[node.output.name], finest=coarsest / _FINEST)

    def _integer(self, value: Value) -> Value:
        if value.name not in self._integers:
            if self._old.is_constant(value):
                return self._constant(value, _covering(self._old.tensor(value)))
            encoding = _covering(self._seen[value.name])
            self._integers[value.name] = self._builder.add(
                Quantize(), self._reals[value.name], quantization=encoding
            )
        return self._integers[value.name]

    def _encoded(self, value: Value, encoding: Encoding) -> Value:
        if self._old.is_constant(value):
            return self._constant(value, encoding)
        integers = self._integer(value)
        if integers.type.quantization == encoding:
            return integers
        return self._builder.add(Requantize(), integers, quantization=encoding)

    def _constant(self, value: Value, encoding: Encoding) -> Value:
        integers = encoding.quantize(self._old.tensor(value).double())
        return self._builder.constant(value.name, integers, quantization=encoding)

    def _real(self, value: Value) -> Value:
        if value.name not in self._reals:
            self._reals[value.name] = self._builder.add(Dequantize(), self._integers[value.name])
        return self._reals[value.name]


def _covering(seen: Tensor, *, finest: float = 0.0) -> Encoding:
    """The 8-bit encoding that covers the smallest to the largest element and zero."""
    finite = seen.double().nan_to_num(0.0, 1e6, -1e6).clamp(-1e6, 1e6)
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    scale = max((high - low) / 255, finest, 1e-6)
    return Encoding((scale,), (max(-128, min(127, round(-128 - low / scale))),))


def _symmetric(
    weight: Tensor, *, axis: int | None = None, group_size: int | None = None, bits: int = 8
) -> Encoding:
    largest = weight.double().nan_to_num(0.0, 1e6, -1e6).abs().clamp(max=1e6)
    if axis is None:
        rows = largest.max().view(1)
    else:
        moved = largest.movedim(axis, 0)
        rows = moved.reshape(-1, group_size or moved[0].numel()).amax(1)
    scales = torch.where(rows > 0, rows / ((1 << (bits - 1)) - 1), torch.full_like(rows, 1e-3))
    return Encoding(tuple(scales.tolist()), (0,), bits, axis, group_size)
