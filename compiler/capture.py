"""Capture: from a torch module to a graph that computes the same, bit for bit, or a refusal with the user's line.

The module is traced by `torch.export` without decomposition; the trace becomes nodes by the operators' own table,
and what no operator expresses becomes an opaque `torch_call`. The module itself is left as it was.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from ..ir import Builder, DType, ShapeError, TensorType, dump, parse, verify
from .captured import Captured, Fixed, Leaf, Signature, TensorAt, as_callable
from .constants import Named, bind_constants
from .errors import Problem, UserError
from .functionalize import Storage, Tracked
from .importer import Importer
from .refusals import refusals
from .sources import location_of

_DATA_DEPENDENT = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)
_TOLERANCE = {DType.F16: 1e-2, DType.BF16: 5e-2, DType.F64: 1e-10, DType.C128: 1e-10}
_SINGLE_TOLERANCE = (
    1e-5  # relative to the largest element; kernels may sum in another order than the module's own
)


class CaptureError(UserError):
    """A module that cannot be captured as it is: why, at which line of the user's, and what to do."""


def capture(
    model: nn.Module,
    args: Sequence[Any],  # Any: whatever the module takes
    kwargs: Mapping[str, Any] | None = None,
    *,
    input_names: Sequence[str] | None = None,
    check: bool = True,
) -> Captured:
    """The graph of `model` for arguments like these: same shapes, same numbers and texts among them.

    With `check`, module and graph are both run once on the arguments, and a difference is refused. CaptureError
    holds all that stands against a capture, each with the user's line. `input_names` renames the graph's inputs.
    """
    _check_state(model)
    positional, named = tuple(args), dict(kwargs or {})
    with _untouched(model), torch.no_grad():
        program = _traced(model, positional, named)
        captured = _imported(program, input_names)
        return _checked(model, positional, named, captured) if check else captured


def roundtrip(
    model: nn.Module,
    example: tuple[Sequence[Any], Mapping[str, Any]],  # Any: whatever the module takes
) -> Callable[..., Any]:
    """`model` captured, written as text, read back and made callable: what the graph alone carries."""
    captured = capture(model, *example)
    graph = verify(parse(dump(captured.graph), params=captured.graph.params))
    return as_callable(captured, graph=graph)


def _check_state(model: nn.Module) -> None:
    problems = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            fact = f"{name} is on the meta device and has no values"
            problems.append(Problem("M212", type(model).__name__, fact, "load its weights"))
        elif tensor.device.type != "cpu":
            fact = f"{name} is on {tensor.device}"
            problems.append(Problem("M212", type(model).__name__, fact, "call model.cpu()"))
    if problems:
        raise CaptureError(problems)


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    try:
        with _quiet():
            program = torch.export.export(model, args, kwargs, strict=False)
    except _DATA_DEPENDENT as err:
        raise CaptureError(
            Problem(
                "M201",
                location_of(err),
                "which way the program takes depends on the data",
                "take both ways and choose with torch.where, or move the choice out of the model",
            )
        ) from err
    except Exception as err:  # the user's forward may raise anything, and so may the tracer
        raise CaptureError(_export_problem(model, err)) from err
    found = refusals(program.graph_module)
    if found:
        raise CaptureError(found)
    return program


def _export_problem(model: nn.Module, error: Exception) -> Problem:
    place = location_of(error) or type(model).__name__
    text = str(error).strip().partition("\n")[0]
    unknown = re.match(r"Found (<class .*>) in output", text)
    if unknown:
        advice = (
            "give tensors, lists, tuples or dicts, or register the class with torch.export.register_dataclass"
        )
        return Problem("M207", place, f"the result holds a {unknown[1]}, which cannot be taken apart", advice)
    advice = "check that the module runs on the example inputs; if it does, this line cannot be traced"
    return Problem("M200", place, f"tracing raises {type(error).__name__}: {text}", advice)


def _imported(program: ExportedProgram, input_names: Sequence[str] | None) -> Captured:
    builder = Builder()
    importer = Importer(builder)
    placeholders = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    state: list[Named] = []
    bound: dict[str, object] = {}
    inputs: list[Leaf] = []
    wishes = iter(input_names) if input_names is not None else None
    count = 0
    for node in placeholders:
        spec = kinds[node.name]
        if spec.kind is not InputKind.USER_INPUT:
            assert spec.target is not None
            state.append(Named(node.name, spec.target, _tensor_named(program, spec.target)))
        elif isinstance(node.meta["val"], Tensor):
            name = next(wishes) if wishes is not None else node.name
            value = builder.input(name, _input_type(name, node.meta["val"]))
            bound[node.name] = Tracked(value, Storage(owner=f"input {name}"))
            inputs.append(TensorAt(count))
            count += 1
        else:
            bound[node.name] = node.meta["val"]
            inputs.append(Fixed(node.meta["val"]))
    bound |= bind_constants(builder, state, importer.emit)
    results = importer.run(program.graph_module, [bound[node.name] for node in placeholders])
    if importer.problems:
        raise CaptureError(importer.problems)
    read = [r.read() if isinstance(r, Tracked) else r for r in results]
    positions = iter(range(len(read)))
    outputs = tuple(TensorAt(next(positions)) if isinstance(r, Tracked) else Fixed(r) for r in results)
    graph = builder.build([v for v, r in zip(read, results, strict=True) if isinstance(r, Tracked)])
    spec_in, spec_out = program.call_spec.in_spec, program.call_spec.out_spec
    return Captured(verify(graph), Signature(spec_in, tuple(inputs), spec_out, outputs))


def _tensor_named(program: ExportedProgram, name: str) -> Tensor:
    found = program.state_dict.get(name)
    tensor = program.constants[name] if found is None else found
    if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.layout != torch.strided:
        raise CaptureError(
            Problem("M208", name, "is no dense tensor", "convert it with .dequantize() or .to_dense()")
        )
    try:
        DType.of(tensor.dtype)
    except ShapeError as err:
        raise CaptureError(Problem("M208", name, str(err), "convert it to a supported type")) from err
    return tensor.detach()


def _input_type(name: str, tensor: Tensor) -> TensorType:
    try:
        return TensorType.of(tensor)
    except ShapeError as err:
        raise CaptureError(
            Problem("M208", f"input {name}", str(err), "convert it to a supported type")
        ) from err


def _checked(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], captured: Captured) -> Captured:
    own = pytree.tree_leaves(model(*pytree.tree_map(_copy, args), **pytree.tree_map(_copy, kwargs)))
    copied = pytree.tree_leaves(as_callable(captured)(*args, **kwargs))
    deviation = 0.0
    for index, (a, b) in enumerate(zip(own, copied, strict=True)):
        if not isinstance(a, Tensor):
            continue
        difference, limit = _difference(a, b)
        if not difference <= limit:
            place = type(model).__name__
            fact = f"result {index} of the module differs from its trace by {difference:.1e} of its largest element"
            advice = (
                "look for random numbers, state, or choices made in Python; a model must give the same twice"
            )
            raise CaptureError(Problem("M209", place, fact, advice))
        deviation = max(deviation, difference)
    return replace(captured, deviation=deviation)


def _copy(leaf: Any) -> Any:  # Any: a leaf of the arguments
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest difference relative to the largest finite element of `a`, and what is allowed; inf for other types."""
    if a.shape != b.shape or a.dtype is not b.dtype:
        return float("inf"), 0.0
    if torch.equal(a, b) or not a.numel():
        return 0.0, 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf"), 0.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    a_wide, b_wide = a.to(wide), b.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a_wide.abs().where(a_wide.isfinite(), 0.0).max().clamp(min=torch.finfo(torch.float64).tiny)
    difference = ((a_wide - b_wide).abs() / scale).where(~same, 0.0).max()
    return float(difference.nan_to_num(nan=float("inf"))), _TOLERANCE.get(
        DType.of(a.dtype), _SINGLE_TOLERANCE
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's own warnings and logs held back: what matters of them comes as a problem."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Attributes of `model` and the random generators are afterwards what they were before."""
    kept = [(module, {k: _shallow(v) for k, v in vars(module).items()}) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _shallow(value: Any) -> Any:  # Any: an attribute of the user's module
    return (
        value.copy()
        if type(value).__module__ in ("builtins", "collections") and hasattr(value, "copy")
        else value
    )
