"""Capture: conversion of a torch module to a graph that computes the same, bit for bit, or a refusal with the user's
line.

The module is traced by `torch.export` without decomposition. The operators' lowering table converts the trace to
nodes; calls without an operator become opaque `torch_call` nodes. The module itself is unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import count
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from ...ir import Builder, DType, Entry, IRError, ShapeError, TensorType, dump, long_numbers, parse, verify
from ...ir.quiet import quiet
from ...ir.symbolic import sizes_to_check
from ...specs.root_error import expect
from ..errors import Problem, UserError, first_line
from ..isolation import USER_CODE_RAISES, untouched
from .agreement import deviation, first_difference
from .captured import Captured, Fixed, Leaf, Signature, TensorAt, as_callable
from .constants import Named, bind_constants
from .dynamic import FIXED, DynamicInputs, Range, dynamic_inputs, traced_dimensions
from .functionalize import Storage, Tracked
from .importer import Importer
from .refusals import problem_at, refusals
from .results import register_dataclasses, result_names
from .sources import location_of
from .stand_ins import stand_in, storage_of

_DATA_DEPENDENT = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)
_FLOAT_INDICES = "argument #1 'indices' to have one of the following scalar types"
_UNKNOWN_CLASS = re.compile(r"Found (<class .*>) in output")


class CaptureError(UserError):
    """A module that cannot be captured: reason, the user's line, and remedy."""


def capture(
    model: nn.Module,
    args: Sequence[Any],  # Any: the arguments of the module
    kwargs: Mapping[str, Any] | None = None,
    *,
    params: Mapping[str, Entry] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Mapping[str, Range] | None = None,
    check: bool = True,
) -> Captured:
    """The graph of `model` for arguments like these: the same shapes, and the same values of numbers and texts.

    With `check`, module and graph both run once on the arguments, and a difference is refused. CaptureError has all
    reasons against a capture, each with the user's line. `input_names` and `output_names` rename the graph's inputs
    and outputs.

    `dynamic` names the dimensions of inputs whose size each call chooses, `{"tokens": {0: "batch", 1: "length"}}`,
    and `ranges` the least and largest size of some, `{"length": (2, 512)}`. A dimension name has the same size
    everywhere. Module and graph are then also compared at two other sizes.

    `params` has the tensors of a module on the meta device by the names of its state dict, such as those of
    `ir.open_tensors(path)`. They become constants of the graph without being read, and module and graph are not run.
    """
    _check_arguments(model, args, kwargs, params, input_names, output_names)
    positional, named = _distinct(tuple(args), dict(kwargs or {}))
    with untouched(model), torch.no_grad():
        stand_ins = stand_in(model, params or {})
        _check_devices(model, (positional, named))
        sizes = FIXED
        if dynamic:
            sizes = dynamic_inputs(model, positional, named, dynamic, ranges or {}, input_names)
        program = _traced(model, positional, named, sizes)
        names = (input_names, output_names, type(model).__name__)
        captured = _imported(program, names, stand_ins, sizes)
        if stand_ins or not check:
            return captured
        checked = _checked(model, positional, named, program, captured)
        if not sizes:
            return checked
        again = partial(_imported, program, names, stand_ins, sizes)
        return _checked_at_sizes(model, (positional, named), sizes, checked, again)


def _distinct(
    args: tuple[Any, ...],  # Any: the arguments of the module
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a copy of each repeated tensor: the tracer would merge equal tensors into one input."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:  # Any: as above
        if not isinstance(leaf, Tensor) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return leaf.clone()

    distinct: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(own, (args, kwargs))
    return distinct


def roundtrip(
    model: nn.Module,
    example: tuple[Sequence[Any], Mapping[str, Any]],  # Any: the arguments of the module
) -> Callable[..., Any]:
    """`model` after capture, dump and parse, as a callable: tests that the graph alone is sufficient."""
    captured = capture(model, *example)
    text, numbers = dump(captured.graph), long_numbers(captured.graph)
    graph = verify(parse(text, params=captured.graph.params, numbers=numbers))
    return as_callable(captured, graph=graph)


def _check_arguments(
    model: object, args: object, kwargs: object, params: object, input_names: object, output_names: object
) -> None:
    """ArgumentError for arguments of the wrong class."""
    hint = f"pass an instance, as in {model.__name__}()" if isinstance(model, type) else ""
    expect(model, nn.Module, "capture(model, args)", "a torch.nn.Module", hint)
    hint = "write (x,)" if isinstance(args, Tensor) else ""
    expect(args, (tuple, list), "capture(model, args)", "a tuple of the arguments of `forward`", hint)
    expect(kwargs, (Mapping, NoneType), "capture(model, args, kwargs)", "the keywords of `forward`")
    expect(
        params,
        (Mapping, NoneType),
        "capture(params=...)",
        "tensors by name",
        "open them with open_tensors(path)",
    )
    for option, names in (("input_names", input_names), ("output_names", output_names)):
        hint = f"write [{names!r}]" if isinstance(names, str) else ""
        expect(names, (list, tuple, NoneType), f"capture({option}=...)", "a list of names", hint)


def _check_devices(model: nn.Module, arguments: object) -> None:
    place = type(model).__name__
    inputs = enumerate(leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor))
    tensors = [
        *model.named_parameters(),
        *model.named_buffers(),
        *((f"input {i}", tensor) for i, tensor in inputs),
    ]
    problems = [
        Problem("M212", place, f"{name} is on the meta device and has no values", "load its weights")
        if tensor.is_meta
        else Problem("M212", place, f"{name} is on {tensor.device}", "move it with .cpu()")
        for name, tensor in tensors
        if tensor.device.type != "cpu"
    ]
    if problems:
        raise CaptureError(problems)


def _traced(
    model: nn.Module,
    args: tuple[Any, ...],  # Any: the arguments of the module
    kwargs: dict[str, Any],
    sizes: DynamicInputs = FIXED,
) -> ExportedProgram:
    try:
        with quiet():
            program = _exported(model, args, kwargs, sizes)
    except _DATA_DEPENDENT as err:
        raise CaptureError(
            Problem(
                "M201",
                location_of(err),
                "the branch that the program takes depends on the data",
                "compute both branches and select with torch.where, or move the branch out of the model",
            )
        ) from err
    except USER_CODE_RAISES as err:
        problem = _failure("tracing", model, err)
        if sizes:
            fact = f"with dynamic {', '.join(sizes.examples)}, {problem.message}"
            advice = "check that the module supports other sizes, or leave the dimension out of `dynamic`"
            problem = Problem("M216", problem.place, fact, advice)
        raise CaptureError(problem) from err
    found = refusals(program.graph_module)
    if found:
        raise CaptureError(found)
    return program


def _exported(
    model: nn.Module,
    args: tuple[Any, ...],  # Any: the arguments of the module
    kwargs: dict[str, Any],
    sizes: DynamicInputs,
) -> ExportedProgram:
    """The traced program; dataclasses in its result that the tracer lacks are registered first."""
    shapes = None
    if sizes:
        args, kwargs = sizes.traced((args, kwargs))
        shapes = sizes.shapes(model, args, kwargs)
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as err:
        if not _UNKNOWN_CLASS.match(str(err)) or not register_dataclasses(model(*args, **kwargs)):
            raise
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _failure(doing: str, model: nn.Module, error: BaseException) -> Problem:
    place = location_of(error) or type(model).__name__
    text = str(error).strip().partition("\n")[0]
    unknown = _UNKNOWN_CLASS.match(text)
    if unknown:
        advice = "return tensors, lists, tuples or dicts, or register the class with torch.export.register_dataclass"
        return Problem(
            "M207", place, f"the result contains a {unknown[1]}, which cannot be flattened", advice
        )
    advice = "check that the module runs on the example inputs"
    if _FLOAT_INDICES in text:
        advice = "indices are integers: give the input `dtype: int64`"
    elif doing == "tracing":
        advice += "; if it does, this line cannot be traced"
    return Problem("M200", place, f"{doing} raises {type(error).__name__}: {text}", advice)


def _imported(
    program: ExportedProgram,
    names: tuple[Sequence[str] | None, Sequence[str] | None, str],
    stand_ins: Mapping[int, Entry],
    sizes: DynamicInputs,
    *,
    several: Set[str] = frozenset(),
) -> Captured:
    """The graph of a program; `names` are those of inputs, outputs and module; dimensions in `several` have sizes
    above one.
    """
    input_names, output_names, place = names
    builder = Builder()
    placeholders = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    given = [n for n in placeholders if specs[n.name].kind is InputKind.USER_INPUT]
    held = {n: _tensor_named(program, str(specs[n.name].target)) for n in placeholders if n not in given}
    state = [
        Named(n.name, str(specs[n.name].target), tensor, stand_ins.get(storage_of(tensor)))
        for n, tensor in held.items()
    ]
    dimensions = traced_dimensions(
        sizes, [n for n in given if isinstance(n.meta["val"], Tensor)], program.range_constraints, several
    )
    importer = Importer(builder, symbols=dimensions.symbols)
    bound = _bind_inputs(builder, given, input_names, partial(dimensions.shape, sizes))
    inputs = _leaves([bound[node.name] for node in given])
    bound |= bind_constants(builder, state, importer.emit)
    results = importer.run(program.graph_module, [bound[node.name] for node in placeholders])
    if importer.problems:
        raise CaptureError(importer.problems)
    spec_in, spec_out = program.call_spec.in_spec, program.call_spec.out_spec
    assert spec_in is not None and spec_out is not None
    tensors = [result for result in results if isinstance(result, Tracked)]
    if not tensors:
        fact = "forward returns None" if results == [None] else "forward returns no tensor"
        raise CaptureError(Problem("M214", place, fact, "return the result from forward"))
    own_names = result_names(spec_out, [isinstance(result, Tracked) for result in results])
    chosen = output_names or own_names
    if len(chosen) != len(tensors) or len(set(chosen)) != len(chosen):
        fact = f"{', '.join(chosen)} are not {len(tensors)} different names for {', '.join(own_names)}"
        raise CaptureError(Problem("M213", place, fact, "give one name for each output, in their order"))
    graph = builder.build([tensor.read() for tensor in tensors], output_names=chosen)
    trainable = {named.name for named in state if named.tensor.requires_grad}
    signature = Signature(spec_in, inputs, spec_out, _leaves(results))
    return Captured(verify(graph), signature, frozenset(trainable & graph.params.keys()))


def _bind_inputs(
    builder: Builder,
    given: list[fx.Node],
    names: Sequence[str] | None,
    shape_of: Callable[[int, Tensor], tuple[int, ...]],
) -> dict[str, object]:
    """Declares the graph's inputs: returns a tracked tensor for each given tensor, and all other arguments
    unchanged.
    """
    tensors = [node for node in given if isinstance(node.meta["val"], Tensor)]
    if names is not None and len(names) != len(tensors):
        fact = f"{len(names)} names for {len(tensors)} input tensors"
        raise CaptureError(Problem("M213", ", ".join(names), fact, "give one name for each, in their order"))
    bound = {node.name: node.meta["val"] for node in given}
    for i, (node, name) in enumerate(zip(tensors, names or [node.name for node in tensors], strict=True)):
        value = builder.input(name, _input_type(name, node.meta["val"], partial(shape_of, i)))
        bound[node.name] = Tracked(value, Storage(owner=f"input {name}", is_seen=True))
    return bound


def _leaves(items: Sequence[object]) -> tuple[Leaf, ...]:
    positions = count()
    return tuple(TensorAt(next(positions)) if isinstance(i, Tracked) else Fixed(i) for i in items)


def _tensor_named(program: ExportedProgram, name: str) -> Tensor:
    found = program.state_dict.get(name)
    tensor = program.constants[name] if found is None else found
    if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.layout != torch.strided:
        raise CaptureError(
            Problem("M208", name, "is not a dense tensor", "convert it with .dequantize() or .to_dense()")
        )
    try:
        DType.of(tensor.dtype)
    except ShapeError as err:
        raise CaptureError(Problem("M208", name, err.message, "convert it to a supported type")) from err
    return tensor


def _input_type(name: str, tensor: Tensor, shape_of: Callable[[Tensor], tuple[int, ...]]) -> TensorType:
    try:
        return TensorType(shape_of(tensor), DType.of(tensor.dtype))
    except ShapeError as err:
        raise CaptureError(
            Problem("M208", f"input {name}", err.message, "convert it to a supported type")
        ) from err


def _checked(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    program: ExportedProgram,
    captured: Captured,
) -> Captured:
    try:
        largest, in_limits = deviation(model, args, kwargs, captured)
    except USER_CODE_RAISES as err:
        raise CaptureError(_failure("running", model, err)) from err
    if in_limits <= 1.0:
        return replace(captured, deviation=largest)
    again = _traced(model, args, kwargs)
    changed = {
        name: tensor
        for name, tensor in _lifted(program).items()
        if name in _lifted(again) and not torch.equal(tensor, _lifted(again)[name])
    }
    node = first_difference(program.graph, again.graph, changed)
    if node is not None:
        fact = "Python computes a value here that differs between calls"
        raise CaptureError(
            problem_at(node, "M204", fact, "pass it as an input, or compute it once in __init__")
        )
    fact = f"the module's result differs from the result of its trace by {largest:.1e} of its largest element"
    advice = "look for state and random numbers; two calls of a model must give the same result"
    raise CaptureError(Problem("M209", type(model).__name__, fact, advice))


def _checked_at_sizes(
    model: nn.Module,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],  # Any: the arguments of the module
    sizes: DynamicInputs,
    captured: Captured,
    again: Callable[..., Captured],
    several: Set[str] = frozenset(),
) -> Captured:
    """The captured module after a comparison with the module at sizes other than the example's.

    A size of one is often a special case: dimensions at which module and graph differ for size one get a minimum of
    two, and `again` captures the graph for that.
    """
    dimensions = captured.graph.dimensions
    for call in sizes_to_check(dimensions):
        problem = _difference_at(model, sizes, arguments, call, captured)
        if problem is None:
            continue
        free = {n for n, d in dimensions.items() if n not in sizes.ranges and call[n] == 1 < d.example}
        alone = {
            name
            for name in free
            if _difference_at(model, sizes, arguments, {**sizes.examples, name: 1}, captured) is not None
        }
        if not free:
            raise CaptureError(problem)
        larger = replace(again(several=several | (alone or free)), deviation=captured.deviation)
        return _checked_at_sizes(model, arguments, sizes, larger, again, several | (alone or free))
    return captured


def _difference_at(
    model: nn.Module,
    sizes: DynamicInputs,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],  # Any: the arguments of the module
    call: Mapping[str, int],
    captured: Captured,
) -> Problem | None:
    """Problem of the graph at these sizes; None if it agrees with the module."""
    at = ", ".join(f"{name} = {size}" for name, size in call.items())
    advice = "limit the dimensions with `min` and `max`, or remove them from `dynamic`"
    args, kwargs = sizes.resized(arguments, call)
    try:
        model(*args, **kwargs)
    except USER_CODE_RAISES as err:
        return Problem("M217", type(model).__name__, f"the module raises at {at}: {first_line(err)}", advice)
    try:
        largest, in_limits = deviation(model, args, kwargs, captured)
    except (IRError, RuntimeError, IndexError) as err:
        return Problem("M217", type(model).__name__, f"the graph raises at {at}: {first_line(err)}", advice)
    if in_limits <= 1.0:
        return None
    fact = f"the graph differs from the module at {at} by {largest:.1e} of the largest element of the result"
    return Problem("M217", type(model).__name__, fact, advice)


def _lifted(program: ExportedProgram) -> dict[str, Tensor]:
    """Tensors that the user's code created during tracing, by placeholder."""
    return {
        spec.arg.name: _tensor_named(program, str(spec.target))
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
