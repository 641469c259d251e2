"""Lowering of a float graph to integers, with a given plan and given encodings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...ir import (
    BINARY_BITS,
    Builder,
    Encoding,
    Graph,
    IRError,
    Node,
    OverflowBoundError,
    TensorType,
    Value,
    encode_codebooks,
)
from ...ir.ops.accumulate import fixed_point, prove_accumulator
from ...ir.ops.attention import Attention
from ...ir.ops.attention_form import SCORES
from ...ir.ops.base import Quantized
from ...ir.ops.layer import Layer
from ...ir.ops.linear import Linear
from ...ir.ops.norm import StatisticsNorm
from ...ir.ops.prelu import Prelu
from ...ir.ops.quantize import Dequantize, Quantize, Requantize
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.recurrent_form import STATE_BITS, UNIT
from ...specs.options import QuantizeOptions
from ..calibration.observers import Range
from ..errors import PassError
from ..report import Decision, Table
from ..weighted_layers import bias_name, is_layer
from .activation_encodings import ActivationEncodings
from .layer_precisions import BITS, NARROW_BITS, Precisions
from .quantization_plan import Plan
from .range_encodings import activation_encoding, symmetric_encoding
from .weights import QuantizedWeights, quantize_weights


class Lowering:
    """Rebuilds a float graph on integers, node by node; each value has a float and an integer form on demand."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        encodings: ActivationEncodings,
        options: QuantizeOptions,
        *,
        precisions: Precisions,
    ) -> None:
        self._graph, self._plan, self._encodings = graph, plan, encodings
        self._options, self._precisions = options, precisions
        self._builder = Builder(reserved=[v.name for v in graph.results])
        self._reals: dict[str, Value] = {}
        self._integers: dict[str, Value] = {}
        self._constants: dict[tuple[str, Encoding], Value] = {}
        self._rescaled: dict[tuple[str, Encoding], Value] = {}
        self._rows: dict[str, tuple[str, str, str, int, int, int]] = {}
        self._overflows: list[str] = []
        self._binary: set[str] = set()
        self.decisions: list[Decision] = []

    def graph(self) -> Graph:
        """The integer graph; PassError with `on_overflow: error` if accumulators could overflow."""
        for value in self._graph.inputs:
            self._reals[value.name] = self._builder.input(value.name, value.type)
        for value, _ in self._plan.states:  # it is an integer between two calls, for all readers
            self._reals[value.name] = self._builder.add(Dequantize(), self._integer(value))
        for node in self._graph.nodes:
            self._lower(node)
        if self._overflows and self._options.on_overflow == "error":
            raise PassError("; ".join([*self._overflows, "on_overflow: float keeps these layers in float"]))
        states = {output.name for _, output in self._plan.states}
        outputs = [self._state(v) if v.name in states else self._real(v) for v in self._graph.outputs]
        made = self._builder.build(outputs, output_names=self._graph.output_names)
        return encode_codebooks(made, self._binary).with_precisions(self._graph.precisions)

    def table(self) -> Table:
        """One row for each layer with weights that computes on integers."""
        columns = ("layer", "op", "module", "weight_bits", "weight_bytes", "largest_accumulator")
        return Table("layers", columns, tuple(self._rows.values()))

    def _lower(self, node: Node) -> None:
        reason = self._plan.declined.get(node.outputs[0].name)
        if self._plan.is_integer(node):
            try:
                self._emit_integer(node)
            except IRError as err:  # no integer form for these types, or an accumulator that could overflow
                reason = err.message
                if isinstance(err, OverflowBoundError):
                    self._overflows.append(f"%{node.outputs[0].name} ({node.source}): {err.message}")
                self._rows.pop(node.outputs[0].name, None)
            else:
                self._decide(node, True, "computes on integers")
                return
        if reason is not None:
            self._decide(node, False, reason)
        self._emit_real(node)

    def _decide(self, node: Node, applied: bool, reason: str) -> None:
        self.decisions.append(Decision("quantize", node.outputs[0].name, node.source, applied, reason))

    def _emit_real(self, node: Node) -> None:
        operands = [v and self._real(v) for v in node.inputs]
        for old, new in zip(node.outputs, self._builder.keep(node, operands), strict=True):
            self._reals[old.name] = new

    def _emit_integer(self, node: Node) -> None:
        if is_layer(node.op):
            operands = self._layer_operands(node, node.op)
        elif isinstance(node.op, Recurrent):
            operands = self._recurrent_operands(node, node.op)
        else:
            operands = self._operands(node)
        operand_types = [None if v is None else v.type for v in operands]
        inferred = node.op.infer(*operand_types)
        types = [
            type.quantized(self._encodings.of(value)) if value.type.dtype.is_floating else type
            for type, value in zip(inferred, node.outputs, strict=True)
        ]
        node.op.check_quantized(operand_types, types)
        if isinstance(node.op, StatisticsNorm):
            parameters = [None if v is None else self._graph.tensor(v) for v in node.inputs[1:]]
            node.op.form(operand_types[0], types[0], *parameters)
        if isinstance(node.op, Recurrent):
            self._note_recurrent(node, node.op, operands, types)
        for value in node.outputs:
            self._builder.release(value.name)
        names = [value.name for value in node.outputs]
        results = self._builder.append(node.op, operands, types, names=names, source=node.source)
        self._integers.update((old.name, new) for old, new in zip(node.outputs, results, strict=True))

    def _operands(self, node: Node) -> list[Value | None]:
        symmetric = {1} if isinstance(node.op, Prelu) else set()
        moved = self._encodings.of(node.outputs[0]) if node.op.quantized is Quantized.MOVE else None
        operands: list[Value | None] = []
        for index, value in enumerate(node.inputs):
            if value is None or not value.type.dtype.is_floating or node.op.stays_real(index):
                operands.append(value and self._real(value))
            elif isinstance(node.op, Attention) and value == node.optional("bias"):
                operands.append(self._encoded(value, SCORES))
            elif self._graph.is_constant(value):
                is_narrow = node.outputs[0].name in self._encodings.narrow
                bits = NARROW_BITS if is_narrow else max(BITS[self._options.activations], NARROW_BITS)
                is_symmetric = index in symmetric
                operands.append(
                    self._integer_constant(value, bits=bits, is_symmetric=is_symmetric, encoding=moved)
                )
            else:
                operands.append(self._with_encoding(value, moved or self._encodings.read_by(node, value)))
        return operands

    def _layer_operands(self, node: Node, op: Layer) -> list[Value | None]:
        data, weight = node.operand("x"), node.operand("weight")
        bias, added = node.optional("bias"), node.optional("residual")
        x = self._with_encoding(data, self._encodings.read_by(node, data))
        residual = None if added is None else self._integer(added)
        encoding_x, encoding_y = x.type.quantization, self._encodings.of(node.output)
        assert encoding_x is not None
        corrects = self._options.bias_correction
        made = quantize_weights(
            op,
            self._graph.tensor(weight),
            None if bias is None else self._graph.tensor(bias),
            x=encoding_x,
            y=encoding_y,
            bits=self._precisions.weight_bits(node.source.module),
            per_channel=self._options.per_channel,
            observer=self._options.weight_observer,
            codebook_bits=self._options.codebook_bits,
            mean=self._encodings.mean(data, op.channel_axis(node.output.type)) if corrects else None,
        )
        bound = _prove(
            node, op, made, x=x.type, residual=None if residual is None else residual.type, y=encoding_y
        )
        stored = self._constant(weight, made.weight, made.weight_encoding)
        if self._precisions.weight_bits(node.source.module) == BINARY_BITS:
            self._binary.add(stored.name)
        row = (node.output.name, op.name, node.source.module, made.weight_encoding.bits)
        self._rows[node.output.name] = (*row, stored.type.storage_bytes, bound)
        if made.bias is None or made.bias_encoding is None:
            return [x, stored, None, residual]
        name = bias_name(weight.name) if bias is None else bias.name
        return [
            x,
            stored,
            self._builder.derived_constant(name, made.bias, quantization=made.bias_encoding),
            residual,
        ]

    def _recurrent_operands(self, node: Node, op: Recurrent) -> list[Value | None]:
        """Operands of a recurrent layer: each row of a matrix has a scale; first states have the encodings of the
        last states.
        """
        x = self._integer(node.operand("x"))
        states = [
            None if v is None else self._encoded(v, self._encodings.of(last))
            for v, last in zip(op.states_of(node.inputs), node.outputs[1:], strict=True)
        ]
        state = self._encodings.of(node.outputs[0])
        gates = Encoding((op.gate_steps[0] or state.scale[0],), bits=STATE_BITS)
        ends = ((x.type.quantization, gates), (state, gates), (UNIT, state))
        biases = (*op.biases_of(node.inputs), None)
        matrices: list[Value] = []
        offsets: list[Value] = []
        for weight, bias, (read, made_for) in zip(op.matrices_of(node.inputs), biases, ends, strict=False):
            assert weight is not None and read is not None
            made = quantize_weights(
                Linear(),
                self._graph.tensor(weight),
                None if bias is None else self._graph.tensor(bias),
                x=read,
                y=made_for,
                bits=self._precisions.weight_bits(node.source.module),
                per_channel=self._options.per_channel,
                observer=self._options.weight_observer,
            )
            matrices.append(self._constant(weight, made.weight, made.weight_encoding))
            if bias is not None and made.bias is not None and made.bias_encoding is not None:
                offsets.append(
                    self._builder.derived_constant(bias.name, made.bias, quantization=made.bias_encoding)
                )
        return [x, *states, *matrices[:2], *offsets, *matrices[2:]]

    def _encoded(self, value: Value, encoding: Encoding) -> Value:
        """The integers of a constant, or of another value, in an encoding."""
        if self._graph.is_constant(value):
            return self._constant(value, encoding.quantize(self._graph.tensor(value)), encoding)
        return self._with_encoding(value, encoding)

    def _note_recurrent(
        self, node: Node, op: Recurrent, operands: Sequence[Value | None], outputs: Sequence[TensorType]
    ) -> None:
        """Adds the row of a recurrent layer; OverflowBoundError if an accumulator could exceed int32."""
        types = [None if v is None else v.type for v in operands]
        constants = [None if v is None else self._builder.tensor(v) for v in operands]
        bound = op.prove(types, outputs, constants)
        size = sum(type.storage_bytes for type in op.matrices_of(types) if type is not None)
        bits = self._precisions.weight_bits(node.source.module)
        row = (node.outputs[0].name, op.name, node.source.module, bits, size, bound)
        self._rows[node.outputs[0].name] = row

    def _constant(self, value: Value, integers: Tensor, encoding: Encoding) -> Value:
        """A constant as integers; nodes with the same constant and encoding share the integers."""
        key = (value.name, encoding)
        if key not in self._constants:
            self._constants[key] = self._builder.constant(value.name, integers, quantization=encoding)
        return self._constants[key]

    def _integer_constant(
        self, value: Value, *, bits: int, is_symmetric: bool, encoding: Encoding | None
    ) -> Value:
        tensor = self._graph.tensor(value)
        if encoding is None:
            low, high = (float(end) for end in tensor.aminmax())
            choose = symmetric_encoding if is_symmetric else activation_encoding
            encoding = choose(Range.of(low, high), bits=bits)
        return self._constant(value, encoding.quantize(tensor), encoding)

    def _with_encoding(self, value: Value, encoding: Encoding) -> Value:
        """The integer form of a value, rescaled if a node needs another encoding."""
        own = self._integer(value)
        if own.type.quantization == encoding:
            return own
        key = (value.name, encoding)
        if key not in self._rescaled:
            self._rescaled[key] = self._builder.add(
                Requantize(), own, name=f"{value.name}_rescaled", quantization=encoding
            )
        return self._rescaled[key]

    def _integer(self, value: Value) -> Value:
        """The integer form of a value, converted at its first use."""
        if value.name not in self._integers:
            self._integers[value.name] = self._builder.add(
                Quantize(), self._real(value), name=f"{value.name}_q", quantization=self._encodings.of(value)
            )
        return self._integers[value.name]

    def _state(self, value: Value) -> Value:
        """The real form of an output that the next call continues, dequantized from its integers."""
        integer = self._integer(value)
        return self._builder.add(Dequantize(), integer, name=f"{value.name}_state")

    def _real(self, value: Value) -> Value:
        """The float form of a value, converted at its first use; a value that never was real stays unchanged."""
        if value.name not in self._reals:
            if self._graph.is_constant(value):
                real = self._builder.constant(
                    value.name, self._graph.tensor(value), quantization=value.type.quantization
                )
            else:
                real = self._builder.add(Dequantize(), self._integers[value.name], name=f"{value.name}_real")
            self._reals[value.name] = real
        return self._reals[value.name]


def _prove(
    node: Node,
    op: Layer,
    made: QuantizedWeights,
    *,
    x: TensorType,
    residual: TensorType | None,
    y: Encoding,
) -> int:
    """Largest accumulator of a layer over all inputs; OverflowBoundError if no integer form can represent it."""
    weight = TensorType(tuple(made.weight.shape)).quantized(made.weight_encoding)
    output = node.output.type.quantized(y)
    fixed = fixed_point(x, weight, output, residual=residual, clamp=op.clamp)
    assert x.quantization is not None
    rows, phases = op.rows(made.weight), op.phases(weight)
    return int(prove_accumulator(rows, made.bias, fixed, x=x.quantization, phases=phases).max())
