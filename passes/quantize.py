"""The pass `quantize`: post-training quantization to integers, from calibration data.

prepare     a batch norm that stands alone becomes a depthwise convolution, activations go into their producers
plan        which nodes compute on integers (`quantize_plan`)
calibrate   the float graph runs on the samples (`calibrate`)
grids       scale and zero point of each group of values that data movement joins (`observers`, `grid`)
lower       nodes are rebuilt on integers, conversions put where float and integers meet
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..ir import Builder, Graph, IRError, Node, Quantization, Value
from ..ir.ops.accumulate import fixed_point, prove_accumulator
from ..ir.ops.quantize import Dequantize, Quantize
from ..specs.options import LayerPrecision, QuantizeOptions
from .base import Context, PassResult, register
from .calibrate import collect
from .fuse_activation import FUSE_ACTIVATION
from .grid import activation_grid, natural_grid
from .layers import clamp_of, is_layer
from .lower_batchnorm import LOWER_BATCHNORM
from .observers import Range, Statistics, choose_range
from .pattern import apply_rules
from .quantize_plan import Plan, make_plan
from .quantize_weights import quantize_weights
from .report import Decision, PassReport, Table

_BITS = {"int2": 2, "int4": 4, "int8": 8, "int16": 16}
_PREPARE = (LOWER_BATCHNORM, FUSE_ACTIVATION)


@register(QuantizeOptions)
def quantize(graph: Graph, options: QuantizeOptions, context: Context) -> PassResult:
    """Integer graph whose results are near the float graph's on data like the calibration samples."""
    prepared, decisions = apply_rules(graph, _PREPARE)
    precision = _precisions(options, context)
    plan = make_plan(prepared, lambda module: precision(module) == "float32")
    samples = context.calibration[: options.samples]
    statistics = collect(prepared, samples, plan.observed, progress=context.progress)
    grids = choose_grids(prepared, plan, statistics, options)
    lowering = _Lowering(prepared, plan, grids.by_group, options, precision)
    quantized = lowering.graph()
    report = PassReport(
        "quantize",
        (*(d for d in decisions if d.applied), *lowering.decisions),
        (grids.table, lowering.table()),
        grids.warnings,
    )
    return PassResult(quantized, report)


def _precisions(options: QuantizeOptions, context: Context) -> Callable[[str], LayerPrecision]:
    """How the weights of a layer, given by its module path, are to be stored: the last pattern that matches decides."""

    def precision(module: str) -> LayerPrecision:
        matching = [kind for pattern, kind in options.layers.items() if context.selects(pattern, module)]
        return matching[-1] if matching else options.weights

    return precision


@dataclass(frozen=True)
class Grids:
    """The grid of each group of values, by the group's representative."""

    by_group: Mapping[str, Quantization]
    table: Table
    warnings: tuple[str, ...]


def choose_grids(
    graph: Graph, plan: Plan, statistics: Mapping[str, Statistics], options: QuantizeOptions
) -> Grids:
    """One grid for each group; an input whose data lie on a grid of their own keeps that."""
    bits = _BITS[options.activations]
    members: dict[str, list[str]] = {}
    for name in statistics:
        members.setdefault(plan.groups.find(name), []).append(name)
    constants = _moved_constants(graph, plan)
    inputs = {v.name for v in graph.inputs}
    grids, rows, warnings = {}, [], []
    for group, names in members.items():
        seen = Statistics.joined([statistics[name] for name in names])
        covered = choose_range(seen, options.observer, levels=1 << bits)
        for low, high in constants.get(group, ()):
            covered = covered.union(Range.of(low, high))
        natural = natural_grid(seen, bits=bits) if set(names) & inputs and group not in constants else None
        grid = natural or activation_grid(covered, bits=bits)
        grids[group] = grid
        rows.append((group, len(names), seen.low, seen.high, grid.scale[0], grid.zero_point[0]))
        warnings += _range_warnings(group, seen)
    columns = ("group", "values", "low", "high", "scale", "zero_point")
    return Grids(grids, Table("grids", columns, tuple(rows)), tuple(warnings))


def _moved_constants(graph: Graph, plan: Plan) -> dict[str, list[tuple[float, float]]]:
    """Ends of the constants that data movement puts beside activations, by group."""
    found: dict[str, list[tuple[float, float]]] = {}
    for node in graph.nodes:
        if node.outputs[0].name in plan.moving:
            for value in node.operands:
                if graph.is_constant(value) and value.type.dtype.is_floating and value.type.numel:
                    low, high = graph.tensor(value).aminmax()
                    found.setdefault(plan.groups.find(value.name), []).append((float(low), float(high)))
    return found


def _range_warnings(name: str, seen: Statistics) -> list[str]:
    middle = float(seen.sample.abs().quantile(0.999)) if len(seen.sample) < 1 << 24 else 0.0
    largest = max(abs(seen.low), abs(seen.high))
    if middle > 0 and largest > _OUTLIER * middle:
        return [
            f"%{name}: the largest value seen, {largest:g}, is {largest / middle:.0g} times that of 99.9 % of the "
            "values; an observer that clips (percentile, mse) keeps their precision"
        ]
    return ["%" + name + ": only zeros were seen in calibration"] if not largest else []


_OUTLIER = 1000.0


class _Lowering:
    """Rebuilds a float graph on integers, node by node; each value has a float and an integer form on demand."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        grids: Mapping[str, Quantization],
        options: QuantizeOptions,
        precision: Callable[[str], LayerPrecision],
    ) -> None:
        self._graph, self._plan, self._grids = graph, plan, grids
        self._options, self._precision = options, precision
        self._builder = Builder(reserved=[v.name for n in graph.nodes for v in n.outputs])
        self._reals: dict[str, Value] = {}
        self._integers: dict[str, Value] = {}
        self._weights: dict[tuple[str, Quantization], Value] = {}
        self.decisions: list[Decision] = []
        self._rows: list[tuple[str, str, str, int, int, int]] = []

    def graph(self) -> Graph:
        """The integer graph."""
        for value in self._graph.inputs:
            self._reals[value.name] = self._builder.input(value.name, value.type)
        for node in self._graph.nodes:
            self._lower(node)
        outputs = [self._real(v) for v in self._graph.outputs]
        return self._builder.build(outputs, output_names=self._graph.output_names)

    def table(self) -> Table:
        """One row for each layer with weights that computes on integers."""
        columns = ("layer", "op", "module", "weight_bits", "weight_bytes", "largest_accumulator")
        return Table("layers", columns, tuple(self._rows))

    def _lower(self, node: Node) -> None:
        reason = self._plan.declined.get(node.outputs[0].name)
        if self._plan.is_integer(node):
            try:
                self._emit_integer(node)
                self._decide(node, True, "computes on integers")
                return
            except IRError as err:
                reason = str(err)
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
        operands = self._layer_operands(node) if is_layer(node.op) else self._operands(node)
        operand_types = [None if v is None else v.type for v in operands]
        inferred = node.op.infer(*operand_types)
        types = [
            t.quantized(self._grid(v)) if t.dtype.is_floating else t
            for t, v in zip(inferred, node.outputs, strict=True)
        ]
        node.op.check_quantized(operand_types, types)
        for value in node.outputs:
            self._builder.release(value.name)
        names = [v.name for v in node.outputs]
        results = self._builder.append(node.op, operands, types, names=names, source=node.source)
        for old, new in zip(node.outputs, results, strict=True):
            self._integers[old.name] = new

    def _operands(self, node: Node) -> list[Value | None]:
        return [self._integer(v) if v is not None and v.type.dtype.is_floating else v for v in node.inputs]

    def _layer_operands(self, node: Node) -> list[Value | None]:
        assert is_layer(node.op)
        weight, bias, residual = node.operand(1), node.operand(2), node.operand(3)
        assert node.inputs[0] is not None and weight is not None
        x = self._integer(node.inputs[0])
        added = None if residual is None else self._integer(residual)
        grid_x, grid_y = x.type.quantization, self._grid(node.output)
        assert grid_x is not None
        made = quantize_weights(
            node.op,
            self._graph.tensor(weight),
            None if bias is None else self._graph.tensor(bias),
            x=grid_x,
            y=grid_y,
            bits=_BITS[self._precision(node.source.module)],
            per_channel=self._options.per_channel,
            observer=self._options.weight_observer,
        )
        fixed = fixed_point(
            x.type,
            weight.type.quantized(made.weight_grid),
            node.output.type.quantized(grid_y),
            residual=None if added is None else added.type,
            clamp=clamp_of(node.op),
        )
        bound = prove_accumulator(
            made.weight, made.bias, fixed, x=grid_x, channel_axis=made.weight_grid.axis or 0
        )
        row = (node.output.name, node.op.name, node.source.module, made.weight_grid.bits)
        weight_value = self._weight(weight, made.weight, made.weight_grid)
        self._rows.append((*row, weight_value.type.storage_bytes, int(bound.max())))
        bias_value = None
        if bias is not None and made.bias is not None and made.bias_grid is not None:
            bias_value = self._weight(bias, made.bias, made.bias_grid)
        return [x, weight_value, bias_value, added]

    def _weight(self, value: Value, integers: Tensor, grid: Quantization) -> Value:
        key = (value.name, grid)
        if key not in self._weights:
            self._weights[key] = self._builder.constant(value.name, integers, quantization=grid)
        return self._weights[key]

    def _grid(self, value: Value) -> Quantization:
        return self._grids[self._plan.groups.find(value.name)]

    def _integer(self, value: Value) -> Value:
        """The integer form of a value, converted where it is first asked for."""
        if value.name not in self._integers:
            if self._graph.is_constant(value):
                self._integers[value.name] = self._integer_constant(value)
            else:
                real = self._real(value)
                self._integers[value.name] = self._builder.add(
                    Quantize(), real, name=f"{value.name}_q", quantization=self._grid(value)
                )
        return self._integers[value.name]

    def _integer_constant(self, value: Value) -> Value:
        group = self._plan.groups.find(value.name)
        tensor = self._graph.tensor(value)
        grid = self._grids.get(group)
        if grid is None:
            low, high = (float(end) for end in tensor.aminmax())
            grid = activation_grid(Range.of(low, high), bits=_BITS[self._options.activations])
        return self._builder.constant(value.name, grid.quantize(tensor), quantization=grid)

    def _real(self, value: Value) -> Value:
        """The float form of a value, converted where it is first asked for."""
        if value.name not in self._reals:
            if self._graph.is_constant(value):
                self._reals[value.name] = self._builder.constant(value.name, self._graph.tensor(value))
            else:
                self._reals[value.name] = self._builder.add(
                    Dequantize(), self._integers[value.name], name=f"{value.name}_real"
                )
        return self._reals[value.name]
