"""Capture: from a torch module to a graph that computes the same, bit for bit, or a refusal with the user's line.

The module is traced by `torch.export` without decomposition; the trace becomes nodes by the operators' own table,
and what no operator expresses becomes an opaque `torch_call`. The module itself is left as it was.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
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
# of the largest element: a module may choose other kernels when it is not traced, which sum in another order
_TOLERANCE = {DType.F16: 1e-2, DType.BF16: 5e-2, DType.F64: 1e-10, DType.C128: 1e-10}
_SINGLE_TOLERANCE = 1e-5
_CONTAINERS = (dict, list, set)  # of a module's attributes, kept as they were before the trace


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
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    given = [n for n in placeholders if specs[n.name].kind is InputKind.USER_INPUT]
    state = [
        Named(n.name, str(specs[n.name].target), _tensor_named(program, str(specs[n.name].target)))
        for n in placeholders
        if n not in given
    ]
    bound = _bind_inputs(builder, given, input_names)
    inputs = _leaves([bound[node.name] for node in given])
    bound |= bind_constants(builder, state, importer.emit)
    results = importer.run(program.graph_module, [bound[node.name] for node in placeholders])
    if importer.problems:
        raise CaptureError(importer.problems)
    graph = builder.build([result.read() for result in results if isinstance(result, Tracked)])
    spec_in, spec_out = program.call_spec.in_spec, program.call_spec.out_spec
    assert spec_in is not None and spec_out is not None
    return Captured(verify(graph), Signature(spec_in, inputs, spec_out, _leaves(results)))


def _bind_inputs(builder: Builder, given: list[fx.Node], names: Sequence[str] | None) -> dict[str, object]:
    """Declare the graph's inputs: a tracked tensor for each tensor that is given, anything else as it is."""
    tensors = [node for node in given if isinstance(node.meta["val"], Tensor)]
    if names is not None and len(names) != len(tensors):
        fact = f"{len(names)} names for {len(tensors)} input tensors"
        raise CaptureError(Problem("M213", ", ".join(names), fact, "give one name for each, in their order"))
    bound = {node.name: node.meta["val"] for node in given}
    for node, name in zip(tensors, names or [node.name for node in tensors], strict=True):
        value = builder.input(name, _input_type(name, node.meta["val"]))
        bound[node.name] = Tracked(value, Storage(owner=f"input {name}"))
    return bound


def _leaves(items: Sequence[object]) -> tuple[Leaf, ...]:
    positions = count()
    return tuple(TensorAt(next(positions)) if isinstance(i, Tracked) else Fixed(i) for i in items)


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
    """What torch warns, logs and prints is held back: what matters of it comes as a problem."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Attributes of `model` and the random generators are afterwards what they were before."""
    kept = [
        (holder, holder.copy())
        for module in model.modules()
        for holder in (vars(module), *vars(module).values())
        if isinstance(holder, _CONTAINERS)
    ]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for holder, before in kept:
            holder.clear()
            holder.extend(before) if isinstance(holder, list) else holder.update(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
