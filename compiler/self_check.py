"""Check of an emitted torch module against its graph; a difference is a fault of the compiler.

The module runs once on the inputs of one call, and is compared with the float meaning `run`. With floats both make
the same calls; with integers a value may be rounded to the next step, which later layers propagate. The size of such
differences depends on the network: if a module differs by more than its form allows, other valid runs of the graph
(`run_integer` and random steps, or floats changed in their last bits) show how far the network spreads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..backends.torch_module import TorchArtifact, lazy_module
from ..ir import DType, Graph, Value, run, run_integer
from ..ir.interpret import at_call, round_to_encoding
from ..ir.ops.quantize import LARGEST_CODE, Dequantize, FakeQuantizePerToken
from ..ir.symbolic import resized, sizes_to_check
from ..specs.root_error import FxpressError

_FLOAT_LIMIT = {DType.F16: 1e-2, DType.BF16: 5e-2}
_SINGLE_LIMIT = 1e-3  # kernels on packed weights sum in another order
_INTEGER_LIMIT = 2e-2
_STEPS = 2.0
_LEAST = 1e-9  # for results that are zeros
_SPREAD = 4.0
_LAST_BITS = 2.0**-20
_OTHER_TOKENS, _RUNS = 0.02, 4  # share of activations of a token that other sums round differently
_OTHER = 0.25  # share of the elements that a fused residual rounds differently


class InconsistencyError(FxpressError):
    """An emitted module that does not compute its graph."""


def check_module(artifact: TorchArtifact, graph: Graph, inputs: Sequence[Tensor]) -> None:
    """InconsistencyError if the module's results differ from the graph's by more than rounding explains.

    `inputs` are reals, also for inputs that are integers in the graph. With dynamic dimensions, the module also runs
    at two other sizes, on the same numbers repeated. Lazy tensors are read one after the other.
    """
    _check_call(artifact, at_call(graph, inputs), inputs)
    for sizes in sizes_to_check(graph.dimensions):
        fixed = graph.at_sizes(sizes)
        shapes = [dict(enumerate(value.type.shape)) for value in fixed.inputs]
        _check_call(artifact, fixed, [resized(x, shape) for x, shape in zip(inputs, shapes, strict=True)])


def _check_call(artifact: TorchArtifact, graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Like `check_module`, for a graph with fixed sizes."""
    is_integer = any(value.type.is_quantized for value in graph.results)
    stored = [_stored(value, x) for value, x in zip(graph.inputs, inputs, strict=True)]
    reals = [_reals(value, x) for value, x in zip(graph.inputs, stored, strict=True)]
    with torch.no_grad():
        module = lazy_module(artifact) if graph.params.has_lazy else artifact.build()
        results = module(*(x.clone() for x in stored))  # the module may write to its arguments
        computed = [results] if isinstance(results, Tensor) else list(results)
        for value, tensor in zip(graph.outputs, computed, strict=True):
            _check_type(value, tensor)
        computed = [_reals(value, y) for value, y in zip(graph.outputs, computed, strict=True)]
        expected = run(graph, reals)
        errors = [_distance(y, z) for y, z in zip(computed, expected, strict=True)]
        limits = [
            _limit(graph, value, z, _share(module, value, is_integer))
            for value, z in zip(graph.outputs, expected, strict=True)
        ]
        if all(error <= limit for error, limit in zip(errors, limits, strict=True)):
            return
        generator, others = torch.Generator().manual_seed(0), []
        if is_integer:
            integers = run_integer(graph, stored)
            others.append([_reals(value, y) for value, y in zip(graph.outputs, integers, strict=True)])
            others.append(run(graph, reals, rounding=lambda value, x: _other_steps(value, x, generator)))
        else:
            tokens = {n.output.name for n in graph.nodes if isinstance(n.op, FakeQuantizePerToken)}
            fixed = _constant_values(graph)
            for _ in range(_RUNS if tokens else 1):
                others.append(
                    run(
                        graph,
                        reals,
                        rounding=lambda v, x: (
                            x if v.name in fixed else _rounded(v.name in tokens, x, generator)
                        ),
                    )
                )
    spreads = [max(_distance(y, z) for y in ys) for *ys, z in zip(*others, expected, strict=True)]
    for name, error, limit, spread in zip(graph.output_names, errors, limits, spreads, strict=True):
        if not error <= limit + _SPREAD * spread:
            raise InconsistencyError(
                f"output {name} of the emitted torch module differs from the graph by {error:.2g} "
                f"(root mean square); rounding explains {limit + _SPREAD * spread:.2g}"
            )


def _constant_values(graph: Graph) -> set[str]:
    """The values that are computed only from constants: weights, which are the same in every run."""
    fixed = set[str](graph.params)
    for node in graph.nodes:
        if all(value.name in fixed for value in node.operands):
            fixed.update(value.name for value in node.outputs)
    return fixed


def _check_type(value: Value, tensor: Tensor) -> None:
    found = (tuple(tensor.shape), tensor.dtype)
    if found != (value.type.shape, value.type.dtype.torch):
        raise InconsistencyError(f"output {value} of the emitted torch module has shape and type {found}")


def _stored(value: Value, x: Tensor) -> Tensor:
    """Reals in the storage form of an input."""
    quantization = value.type.quantization
    return x if quantization is None else quantization.quantize(x).to(value.type.dtype.torch)


def _reals(value: Value, x: Tensor) -> Tensor:
    quantization = value.type.quantization
    return x if quantization is None or x.is_floating_point() else quantization.dequantize(x)


def _distance(y: Tensor, z: Tensor) -> float:
    """Root mean square of the difference; infinite if only one of two elements is finite."""
    if not y.numel():
        return 0.0
    wide = torch.complex128 if y.is_complex() else torch.float64
    difference = (y.to(wide) - z.to(wide)).abs()
    same = (y == z) | (y.isnan() & z.isnan())
    return float(difference.where(~same, 0.0).nan_to_num(nan=float("inf")).square().mean().sqrt())


def _share(module: nn.Module, value: Value, is_integer: bool) -> float:
    """The share of a result's size by which a form may differ without further runs."""
    library = type(module).forward.__globals__.get("packed_linear_library")
    if library is not None and library() is None:
        return _FLOAT_LIMIT[DType.BF16]  # torch's int4 kernel computes in this type
    return _INTEGER_LIMIT if is_integer else _FLOAT_LIMIT.get(value.type.dtype, _SINGLE_LIMIT)


def _limit(graph: Graph, value: Value, expected: Tensor, share: float) -> float:
    """The distance allowed without further runs: a share of the result's size, and steps of its encoding."""
    wide = expected.to(torch.complex128 if expected.is_complex() else torch.float64).abs()
    finite = wide[wide.isfinite()]
    size = float(finite.square().mean().sqrt()) if len(finite) else 0.0
    return _LEAST + share * size + _STEPS * _step(graph, value)


def _step(graph: Graph, value: Value) -> float:
    """The largest step of an output's encoding; 0 without one."""
    producer = graph.producers.get(value.name)
    if producer is not None and isinstance(producer.op, Dequantize):
        (value,) = producer.operands
    return max(value.type.quantization.scale) if value.type.quantization is not None else 0.0


def _other_steps(value: Value, x: Tensor, generator: torch.Generator) -> Tensor:
    """Reals of an integer, with some of them changed by one step, as after a fused residual."""
    rounded = round_to_encoding(value, x)
    encoding = value.type.quantization
    if encoding is None or not encoding.is_per_tensor:
        return rounded
    drawn = torch.rand(x.shape, generator=generator)
    moved = (drawn < _OTHER / 2).to(x.dtype) - (drawn > 1 - _OTHER / 2).to(x.dtype)
    return round_to_encoding(value, rounded + moved * encoding.scale[0])


def _rounded(is_by_token: bool, x: Tensor, generator: torch.Generator) -> Tensor:
    """Floats changed in their last bits; of those rounded to int8 by token, some are changed by a step."""
    if not is_by_token:
        return _in_last_bits(x, generator)
    step = x.abs().amax(-1, keepdim=True) / LARGEST_CODE
    moved = torch.rand(x.shape, generator=generator) < _OTHER_TOKENS
    return x + step * moved.to(x.dtype)


def _in_last_bits(x: Tensor, generator: torch.Generator) -> Tensor:
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    return x * (1 + max(_LAST_BITS, torch.finfo(x.dtype).eps) * noise)
