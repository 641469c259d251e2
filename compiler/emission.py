"""Backends: checks for all of them before anything is emitted, then their files under `c/` and `torch/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from ..backends.c import BUDGET_CODES, CArtifact, PortEncoding, StateError
from ..backends.c import check as check_c
from ..backends.c import emit as emit_c
from ..backends.c.plan.port_layouts import IMAGE_RANK, SEQUENCE_RANK
from ..backends.torch_module import TorchArtifact, TorchOptions
from ..backends.torch_module import emit as emit_torch
from ..ir import Graph, Params, TensorType, UnsupportedError, Value, dump, long_numbers, run, run_integer
from ..ir.spill import spill
from ..specs import COutput, Spec
from .backends import find_backend, raised_by_package
from .data import Samples, own_batch, unrolled
from .errors import Problem, UserError
from .file_contents import Content, Files
from .folder_output import emit_folder
from .gguf_output import emit_gguf
from .interface import INTERFACE_FILE, Interface, Port, make_port
from .loading import example_input
from .measure import is_quantized
from .model_caches import generation_of, tokenizer_files
from .self_check import check_module
from .session import Session

GRAPH_TEXT, GRAPH_PARAMS = "graph.txt", "graph.safetensors"
_LONGEST_SEQUENCE = 64  # calls of a self-test
_CHANNELS_LAST = {IMAGE_RANK: "nhwc", SEQUENCE_RANK: "ntc"}
_VECTORS = 4  # calls for the tests of a backend of a package


@dataclass(frozen=True)
class Artifacts:
    """Artifacts of the backends; `files` are relative to the output directory."""

    c: CArtifact | None = None
    torch: TorchArtifact | None = None
    files: Files = field(default_factory=lambda: Files({}))


def check_backends(session: Session, graph: Graph, *, enforce_budget: bool) -> None:
    """UserError with all reasons why a requested backend cannot write the graph.

    Without `enforce_budget`, a network that is too large for the target's memory is accepted: a plan reports the
    excess.
    """
    options, problems = c_options(session, graph), list[Problem]()
    if options is not None:
        problems += [*_batch_problems(session, graph), *check_c(graph, options, session.target)]
    for name, section in session.spec.outputs.others.items():
        with raised_by_package(name):
            problems += find_backend(name).check(graph, section, session.target)
    problems = [p for p in problems if enforce_budget or p.code not in BUDGET_CODES]
    if problems:
        raise UserError(problems)


def _batch_problems(session: Session, graph: Graph) -> Iterator[Problem]:
    """Inputs that take several samples at once; the data distinguish a batch from another first dimension."""
    samples, described = session.calibration or session.evaluation, session.spec.model.inputs
    sizes = {
        value.name: value.type.shape[axis : axis + 1]
        for i, value in enumerate(graph.inputs)
        for axis in [described[value.name].batch if samples is None else samples.axis(i)]
        if axis is not None
    }
    if len(set(sizes.values())) > 1:  # a size is independent of those of other inputs
        return
    for value in graph.inputs:
        size = prod(sizes.get(value.name, ()))
        if size > 1 and value.type.rank > 1:
            hint = "compile for a batch of 1, or write `batch: null` for an input without a batch"
            yield Problem("C701", f"input {value.name}", f"has a batch of {size}", hint)


def emit_backends(session: Session, graph: Graph) -> Artifacts:
    """Emits the outputs of the spec. Golden vectors of the self-test are evaluation data, else calibration data."""
    spec, target, samples = session.spec, session.target, session.evaluation or session.calibration
    files: dict[str, Content] = {GRAPH_TEXT: dump(graph).encode()}
    if not session.is_folder:
        files[GRAPH_PARAMS] = _stored(graph)
    c = torch_module = None
    options = c_options(session, graph)
    if options is not None:
        try:
            c = emit_c(
                graph,
                options,
                target,
                vectors=_vectors(graph, samples, _tested_calls(session, options)),
                transforms=spec.data.transform,
                states=spec.model.state,
            )
        except StateError as err:
            raise UserError(Problem("C712", "outputs.c.states", err.message, "set `states: copied`")) from err
        files |= {f"c/{name}": content for name, content in c.files.items()}
    if spec.outputs.torch is not None:
        torch_module = _emit_torch(spec, graph, session.buffers & graph.params.keys())
        if graph.params.has_lazy:  # packed once, then read several times
            torch_module = replace(torch_module, tensors=spill(torch_module.tensors))
        check_module(torch_module, graph, *first_calls(graph, samples, 1))
        files |= {f"torch/{name}": content for name, content in torch_module.contents.items()}
    if spec.outputs.hf is not None:
        files |= {f"hf/{name}": content for name, content in emit_folder(session, graph).items()}
    if spec.outputs.gguf is not None:
        files |= {f"gguf/{name}": content for name, content in emit_gguf(session, graph).items()}
    for name, section in spec.outputs.others.items():
        with raised_by_package(name):
            artifact = find_backend(name).emit(
                graph.at_sizes({}),  # those of the example
                section,
                target,
                vectors=_vectors(graph, samples, _VECTORS),
                transforms=spec.data.transform,
                states=spec.model.state,
            )
        files |= {f"{name}/{file}": content for file, content in artifact.files.items()}
    if spec.model.cache is not None and session.is_folder:
        files |= tokenizer_files(spec)
    interface = _interface(session, graph, c, torch_module)
    files[INTERFACE_FILE] = (interface.model_dump_json(indent=2) + "\n").encode()
    return Artifacts(c, torch_module, Files(files))


def c_options(session: Session, graph: Graph) -> COutput | None:
    """Options of the C backend. Rings of a streamed network are in place, in the layout of the graph, channels last.

    Settings of the spec for single inputs and outputs take precedence.
    """
    options = session.spec.outputs.c
    if options is None or not session.frames:
        return options
    state = session.spec.model.state
    rings = {*state, *state.values()}
    orders = {
        name: _CHANNELS_LAST[value.type.rank]
        for name, value in _named_ends(graph)
        if name in rings and value.type.rank in _CHANNELS_LAST
    }
    changed: dict[str, object] = {"layouts": {**orders, **options.layouts}}
    if options.states is None:
        changed["states"] = "in_place"
    if isinstance(options.io, str):
        changed["io"] = {name: options.io for name, _ in _named_ends(graph) if name not in rings}
    return options.model_copy(update=changed)


def _named_ends(graph: Graph) -> list[tuple[str, Value]]:
    """Inputs and outputs by name."""
    inputs = [(value.name, value) for value in graph.inputs]
    return [*inputs, *zip(graph.output_names, graph.outputs, strict=True)]


def _tested_calls(session: Session, options: COutput) -> int:
    """Number of calls in the self-test: for a streamed network at least a whole window, if that is not too long."""
    samples = session.evaluation or session.calibration
    if not session.frames or samples is None or not options.self_test:
        return options.self_test
    return max(options.self_test, min(samples.steps, _LONGEST_SEQUENCE))


def _emit_torch(spec: Spec, graph: Graph, buffers: frozenset[str]) -> TorchArtifact:
    options = spec.outputs.torch
    assert options is not None
    quantized = any(v.type.is_quantized for v in graph.results)
    form = options.form if quantized else "float"
    states = options.states or ("copied" if spec.model.cache is None else "in_place")
    in_place = spec.model.state if states == "in_place" else {}
    try:
        return emit_torch(
            graph,
            TorchOptions(form, buffers=buffers, max_shard_bytes=options.max_shard_bytes, in_place=in_place),
        )
    except UnsupportedError as err:
        raise UserError(Problem("B602", "outputs.torch", err.message)) from err


def first_calls(graph: Graph, samples: Samples | None, count: int) -> list[list[Tensor]]:
    """Inputs of the first calls on samples, at most `count`; without samples one call with the inputs for tracing."""
    if samples is None or not len(samples):
        return [[example_input(v.type.shape, v.type.real().dtype.torch) for v in graph.inputs]]
    few = unrolled(graph, samples.first(count * own_batch(graph.inputs, samples)))
    return [list(few.call(graph.inputs, i)) for i in range(min(count, few.calls(graph.inputs)))]


def _stored(graph: Graph) -> Params:
    """The constants, and the numbers that the text only refers to, by name."""
    return graph.params | {name: numbers.tensor() for name, numbers in long_numbers(graph).items()}


def _vectors(graph: Graph, samples: Samples | None, count: int) -> Sequence[Sequence[Tensor]]:
    """Model inputs for tests of emitted code: real samples if there are any, else seeded noise.

    Inputs that are not floats, such as indices, are then the inputs for tracing.
    """
    if samples is not None and count:
        interpreter = run_integer if samples.states and is_quantized(graph) else run
        few = samples.first(count * own_batch(graph.inputs, samples))
        few = unrolled(graph, few, interpreter=interpreter)
        return [few.call(graph.inputs, i) for i in range(few.calls(graph.inputs))]
    generator = torch.Generator().manual_seed(0)

    def drawn(type: TensorType) -> Tensor:
        if type.real().dtype.is_floating:
            return torch.randn(type.shape, generator=generator)
        return example_input(type.shape, type.dtype.torch)

    return [[drawn(v.type) for v in graph.inputs] for _ in range(count)]


def _interface(
    session: Session, graph: Graph, c: CArtifact | None, torch_module: TorchArtifact | None
) -> Interface:
    spec = session.spec
    names = [v.name for v in graph.inputs] + list(graph.output_names)
    values = [*graph.inputs, *graph.outputs]
    stored = c.ports if c else None
    count = len(graph.inputs)
    ports = [
        make_port(
            name,
            value,
            stored[i].type.dtype if stored else value.type.dtype,
            stored[i].stored.layout.order if stored else tuple(range(value.type.rank)),
            encoding=stored[i].encoding if stored else PortEncoding.of(value.type),
            place=stored[i].place if stored else None,
            transform=spec.data.transform.get(name) if i < count else None,
            batch=spec.model.inputs[name].batch if i < count else 0,
            frames_axis=session.frames.get(name) if i < count else None,
        )
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    _check_states(spec, ports[:count], ports[count:])
    return Interface(
        target=session.target,
        c_name=c.name if c else None,
        regions={used.name: used.bytes for used in c.plan.regions} if c else {},
        state_bytes=c.plan.state_bytes if c else 0,
        c_kernels=c.source.sources if c else (),
        weights_file=f"{c.name}_weights.bin" if c and c.source.is_in_file else None,
        torch_class=torch_module.class_name if torch_module else None,
        inputs=tuple(ports[:count]),
        outputs=tuple(ports[count:]),
        state=spec.model.state,
        generation=generation_of(spec),
    )


def _check_states(spec: Spec, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """UserError unless the buffer of each state's output can be its input at the next call."""
    before, after = ({port.name: port for port in ports} for ports in (inputs, outputs))
    problems = [
        Problem(
            "B603",
            f"state {name}",
            f"as an input of C it is {_encoding(before[name])}, but the output {output} is {_encoding(after[output])}",
            _advice_on_state(spec, before[name], after[output]),
        )
        for name, output in spec.model.state.items()
        if _encoding(before[name]) != _encoding(after[output])
    ]
    if problems:
        raise UserError(problems)


def _advice_on_state(spec: Spec, before: Port, after: Port) -> str:
    """Advice on how both ends of a state get the same encoding."""
    both = f"give {before.name} and {after.name} the same"
    if before.c_order != after.c_order:
        return f"{both} `layouts`: `{{{before.name}: model, {after.name}: model}}`"
    options = spec.outputs.c
    if options is not None and options.stored(before.name) != options.stored(after.name):
        return f"{both} `io`"
    return "leave `finetune` after `quantize` out"


def _encoding(port: Port) -> str:
    order = ", ".join(map(str, port.c_order))
    scaled = "" if port.scale is None else f", scale {port.scale:g}, zero point {port.zero_point}"
    scaled += f", offset {port.offset:g}" if port.offset else ""
    return f"{port.c_dtype} with dimensions ({order}){scaled}"
