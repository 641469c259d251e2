"""Cost model of passes: predicted cost of a graph on the target after the remaining passes.

The remaining passes are run, quantization on a few samples, then the C backend predicts the cost. Passes that train
or decide by costs themselves (`PassOptions.predicted`) are skipped: they change values rather than sizes.

The kernels are the fastest, even if the backend would need smaller ones to fit: a network that is cut to the size of
a target would otherwise end with slow kernels. Layers run by rows, which changes no result and costs little time, if
the first network whose cost is predicted, the largest one, fits the RAM of the target only in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..backends.c import Prediction, check, check_nodes, predict
from ..ir import Graph, IRError, Node, Params, Precision
from ..passes import Context, Cost, NodeCost, PassError, find_pass
from ..passes.base import ArenaBlock
from ..passes.weighted_layers import is_layer
from ..specs import COutput, Target
from ..specs.options import MinMax, Nearest, PassOptions, QuantizeOptions

SAMPLES = 2
"""Calibration samples of a prediction: ranges of values change no size."""

_REMEMBERED = 16


class TargetCost:
    """Costs on a target after the passes `rest`; `context` is that of the calling pass."""

    def __init__(
        self, target: Target, options: COutput | None, rest: Sequence[PassOptions], context: Context
    ) -> None:
        self._target, self._options = target, options or COutput()
        if target.isa != "host":  # budgets of flash also count weights in a file
            self._options = self._options.model_copy(update={"weights_file": "c"})
        self._roomy = target.with_ram(None).model_copy(update={"flash": None, "stack": None})
        self._by_rows: bool | None = None
        self._rest = [_shortened(step) for step in rest if step.predicted]
        self._context = replace(context, calibration=context.calibration[:SAMPLES], labels=())
        self._known: dict[tuple[int, frozenset[tuple[str, Precision]]], tuple[Graph, Cost]] = {}
        self._kernels: dict[tuple[object, ...], bool] = {}

    @property
    def flash_limit(self) -> int | None:
        """Bytes of flash of the target; None without a limit."""
        return self._target.flash

    @property
    def ram_limit(self) -> int | None:
        """Bytes of memory of the target; None without a limit."""
        return self._target.ram

    def predict(self, graph: Graph, *, layers: Mapping[str, Precision] = {}) -> Cost:
        """Cost of `graph` after the remaining passes; PassError if the target does not support it."""
        key = (id(graph), frozenset(layers.items()))
        if key not in self._known:
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = graph, self._predicted(graph, layers)
        return self._known[key][1]

    def weight_bits(self, node: Node) -> tuple[int, ...]:
        """Storage bits of weights for which the target has a kernel for `node`; empty for a node without weights."""
        if not is_layer(node.op):
            return ()
        return tuple(
            bits for bits in self._target.weight_bits if self._has_kernel(node, f"int{bits}", "int8")
        )

    def activation_bits(self, node: Node) -> tuple[int, ...]:
        """Storage bits of activations for which the target has a kernel for `node`."""
        return tuple(
            bits for bits in self._target.activation_bits if self._has_kernel(node, "int8", f"int{bits}")
        )

    def _predicted(self, graph: Graph, layers: Mapping[str, Precision]) -> Cost:
        graph = graph.with_precisions(layers)
        for step in self._rest:
            graph = find_pass(step.pass_name())(graph, step, self._context).graph
        try:
            return _cost(self._fastest(graph))
        except IRError as err:
            problems = check(graph, self._options, self._roomy)
            reasons = "\n  ".join(["", *map(str, problems)]) if problems else f" {err.message}"
            raise PassError(f"no cost prediction on {self._target.name}:{reasons}") from err

    def _fastest(self, graph: Graph) -> Prediction:
        """Prediction with the fastest kernels, by rows if the first network fits the RAM only in that way."""
        whole, ram = predict(graph, self._roomy, options=self._options), self._target.ram
        if ram is None or whole.arena_bytes <= ram or self._by_rows is False:
            return whole
        within = self._roomy.with_ram(ram)
        rows = predict(graph, within, options=self._options, fastest=True)
        if self._by_rows is None:
            self._by_rows = rows.arena_bytes <= ram
        return rows if self._by_rows else whole

    def _has_kernel(self, node: Node, weights: str, activations: str) -> bool:
        """True if the node alone, quantized to these widths, becomes C that computes on integers."""
        key = (node.op, node.operand_types, weights, activations)
        if key not in self._kernels:
            options = QuantizeOptions.model_validate({"weights": weights, "activations": activations})
            alone = _alone(node)
            generator = torch.Generator().manual_seed(0)
            sample = tuple(torch.rand(v.type.shape, generator=generator) for v in alone.inputs)
            quantized = find_pass("quantize")(alone, options, Context([sample])).graph
            computes = any(n.op == node.op and n.outputs[0].type.is_quantized for n in quantized.nodes)
            self._kernels[key] = computes and not check_nodes(quantized, COutput(), self._roomy)
        return self._kernels[key]


def _shortened(step: PassOptions) -> PassOptions:
    """The pass without the options that take time and change no size."""
    if isinstance(step, QuantizeOptions):
        quick = {"samples": SAMPLES, "bias_correction": False, "rounding": Nearest(), "observer": MinMax()}
        return step.model_copy(update=quick)
    return step


def _alone(node: Node) -> Graph:
    """A graph of one node; weight and bias of a layer are constants."""
    generator = torch.Generator().manual_seed(0)
    constants = [node.operand("weight"), node.optional("bias")] if is_layer(node.op) else []
    draw = partial(torch.rand, generator=generator)
    params = {v.name: draw(v.type.shape) - 0.5 for v in constants if v is not None}
    inputs = tuple(dict.fromkeys(v for v in node.operands if v.name not in params))
    return Graph(inputs, node.outputs, (node,), Params(params))


def _cost(prediction: Prediction) -> Cost:
    nodes = tuple(
        NodeCost(n.result, n.source.module, n.flash_bytes, n.instructions, n.cycles) for n in prediction.nodes
    )
    return Cost(
        nodes,
        prediction.flash_bytes,
        prediction.arena_bytes,
        prediction.instructions,
        prediction.cycles,
        tuple(ArenaBlock(b.value, b.bytes, b.start, b.end) for b in prediction.blocks),
    )
