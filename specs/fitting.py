"""Cross-section checks of a spec, run after each section validates."""

from collections.abc import Iterable, Iterator
from math import prod

from .data import Dataset, Transform
from .errors import Problem, near_miss, quoted
from .model import Input
from .options import AssignBitsOptions, LayerBits, PruneOptions, QuantizeOptions, StreamOptions
from .paths import format_path
from .spec import Spec
from .target import Target
from .tree import Location, Node, key_place, place_of

_BITS = {"int2": 2, "int4": 4, "int8": 8, "int16": 16}


_Fault = tuple[str, Location, str, str]
"""Code, location, message and hint."""


def check_fit(spec: Spec, target: Target, root: Node) -> list[Problem]:
    """All contradictions between sections of a spec."""
    found = [
        *_needs(spec),
        *_outputs(spec, target),
        *_bits(spec, target),
        *_cycles(spec, target),
        *_inputs(spec),
        *_metric(spec),
    ]
    problems = []
    for code, location, message, hint in found:
        place = key_place(root, location) if code == "S306" else place_of(root, location)
        problems.append(Problem(code, place, f"{format_path(location)}: {message}", hint))
    return problems


def _needs(spec: Spec) -> Iterator[_Fault]:
    """Problems for passes whose data the spec does not define."""
    calibration = spec.data.calibration
    given = {"calibration": calibration is not None, "labels": bool(calibration and calibration.labels)}
    for index, step in enumerate(spec.passes):
        for need, asking in step.needed():
            if not given[need]:
                missing = "data.calibration" if need == "calibration" else "data.calibration.labels"
                what = step.name if not asking else "this"
                yield "S304", ("passes", index, *asking), f"{what} needs {missing}", f"add `{missing}`"


def _outputs(spec: Spec, target: Target) -> Iterator[_Fault]:
    quantized = any(isinstance(step, QuantizeOptions) for step in spec.passes)
    own = (spec.outputs.c, spec.outputs.torch, spec.outputs.hf, spec.outputs.gguf)
    if not any(own) and not spec.outputs.others:
        yield "S202", ("outputs",), "no output is requested", "add `c: {}` or `torch: {}`"
    for index, step in enumerate(spec.passes if spec.outputs.c else ()):
        if target.isa != "host" and not step.fits_microcontrollers:
            fact = f"{step.name} has a C form only for target host, and the target is {target.name}"
            yield "S307", ("passes", index), fact, "set `target: {name: host}`, or use `quantize`"
    has_states = bool(spec.model.state) or spec.model.cache is not None
    has_states |= any(isinstance(step, StreamOptions) for step in spec.passes)
    for name, output in (("c", spec.outputs.c), ("torch", spec.outputs.torch)):
        if output is not None and output.states == "in_place" and not has_states:
            hint = "declare the states under `model.state`, or leave `states` out"
            yield "S307", ("outputs", name, "states"), "the model has no states", hint
    io = spec.outputs.c.io if spec.outputs.c else "auto"
    words = {(): io} if isinstance(io, str) else {(name,): word for name, word in io.items()}
    for place, word in words.items():
        if word not in ("auto", "float") and not quantized:
            hint = "add `- pass: quantize`, or write `io: float`"
            yield "S307", ("outputs", "c", "io", *place), f"{word} needs a quantized graph", hint


def _bits(spec: Spec, target: Target) -> Iterator[_Fault]:
    """Problems for bit widths for which the target has no kernel; only the C output uses kernels."""
    for index, step in enumerate(spec.passes if spec.outputs.c else ()):
        here: Location = ("passes", index)
        if isinstance(step, AssignBitsOptions):
            yield from _asked(target, here, step)
        if not isinstance(step, QuantizeOptions):
            continue
        yield from _kernels(target, here, step.weights, step.activations)
        for role in step.roles:
            yield from _kernel(target, role, (*here, role), getattr(step, role), target.activation_bits)
        for pattern, precision in step.layers.items():
            location = (*here, "layers", pattern)
            if isinstance(precision, LayerBits):
                yield from _kernels(target, location, precision.weights, precision.activations)
            else:
                yield from _kernel(target, "weights", location, precision, target.weight_bits)


def _cycles(spec: Spec, target: Target) -> Iterator[_Fault]:
    """Problems for budgets of cycles on a core without published cycle counts."""
    if target.timing is not None:
        return
    for index, step in enumerate(spec.passes):
        here: Location = ("passes", index)
        fact = f"{target.name} has no cycle counts"
        hint = "write `instructions`, or choose a target whose core has `timing`"
        budget = step.budget if isinstance(step, (AssignBitsOptions, PruneOptions)) else None
        if budget is not None and budget.cycles is not None:
            yield "S310", (*here, "budget", "cycles"), fact, hint
        if isinstance(step, AssignBitsOptions) and step.minimize == "cycles":
            yield "S310", (*here, "minimize"), fact, hint


def _asked(target: Target, here: Location, step: AssignBitsOptions) -> Iterator[_Fault]:
    """Problems for bit widths that the user lists and the target lacks; default lists are narrowed without
    a message.
    """
    for what, given, bits in (
        ("weights", step.weights, target.weight_bits),
        ("activations", step.activations, target.activation_bits),
    ):
        for width in given if what in step.model_fields_set else ():
            yield from _kernel(target, what, (*here, what), f"int{width}", bits)


def _kernels(
    target: Target, location: Location, weights: str | None, activations: str | None
) -> Iterator[_Fault]:
    yield from _kernel(target, "weights", (*location, "weights"), weights, target.weight_bits)
    yield from _kernel(target, "activations", (*location, "activations"), activations, target.activation_bits)


def _kernel(
    target: Target, what: str, location: Location, kind: str | None, bits: Iterable[int]
) -> Iterator[_Fault]:
    if kind in _BITS and _BITS[kind] not in bits:
        has = ", ".join(f"int{n}" for n in sorted(bits))
        yield "S305", location, f"{target.name} has no kernel for {kind} {what}", f"it has {has}"


def _inputs(spec: Spec) -> Iterator[_Fault]:
    """Problems for names that are not inputs of the model, and for transforms that cannot give the shape of the
    input.
    """
    known = spec.model.inputs
    for location, names in _naming_inputs(spec):
        for name in names:
            if name not in known:
                yield (
                    "S306",
                    (*location, name),
                    f"the model has no input {quoted(name)}",
                    near_miss(name, known),
                )
    for name, transform in spec.data.transform.items():
        if name in known:
            yield from _shape(("data", "transform", name), transform, known[name])
            yield from _numbers(("data", "transform", name), transform, known[name])


def _naming_inputs(spec: Spec) -> Iterator[tuple[Location, Iterable[str]]]:
    datasets: list[tuple[str, Dataset | None]] = [
        ("calibration", spec.data.calibration),
        ("evaluation", spec.data.evaluation),
    ]
    for key, dataset in datasets:
        if dataset:
            yield ("data", key, "inputs"), dataset.inputs
    yield ("data", "transform"), spec.data.transform


def _shape(location: Location, transform: Transform, taken: Input) -> Iterator[_Fault]:
    sample, axes = taken.sample_shape, len(transform.permutation or ())
    if transform.reshape is not None and prod(transform.reshape) not in (prod(sample), prod(taken.shape)):
        message = f"{list(transform.reshape)} holds {prod(transform.reshape)} values, the input takes {prod(sample)}"
        yield "S307", (*location, "reshape"), message, f"the input without its batch is {list(sample)}"
    if axes and transform.reshape is None and axes - 1 not in (len(sample), len(taken.shape)):
        message = f"{transform.layout} has {axes} axes, the input {len(taken.shape)}"
        yield "S307", (*location, "layout"), message, "add `reshape`, or name as many axes as the array has"


def _numbers(location: Location, transform: Transform, taken: Input) -> Iterator[_Fault]:
    if transform.keeps_values or taken.is_floating:
        return
    key = "scale" if transform.scale != 1 else "offset"
    message = f"the input takes {taken.dtype}, and values of the file are converted to it unchanged"
    hint = "scale and shift inside the model, such as `x.float() / 255`, or give the input `dtype: float32`"
    yield "S307", (*location, key), message, hint


def _metric(spec: Spec) -> Iterator[_Fault]:
    evaluation = spec.data.evaluation
    if evaluation and evaluation.metric in ("top1", "mse") and evaluation.labels is None:
        hint = "add `labels`, or measure `agreement` or `snr`"
        yield "S308", ("data", "evaluation", "metric"), f"{evaluation.metric} needs labels", hint
    if evaluation and evaluation.class_axis is not None and evaluation.measured not in ("top1", "agreement"):
        hint = "leave it out, or measure `top1` or `agreement`"
        yield "S307", ("data", "evaluation", "class_axis"), f"{evaluation.measured} has no classes", hint
