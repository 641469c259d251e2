"""Execution of a compiled network: its C on this machine or on a simulated core, its torch module, its
integer graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from ..backends.c import STATE_BLOCK
from ..backends.c.tools.elf import Footprint, read_elf
from ..backends.c.tools.simulate import SimulatedModel, Simulator
from ..backends.c.tools.toolchain import (
    Compiler,
    build_image,
    find_compiler,
    link_shared,
    target_compiler,
)
from ..backends.torch_module.prelude_shards import load_shards
from ..ir import Graph, numbers_of, parse, run_integer
from ..ir.tensor_files import INDEX_FILE, WEIGHTS_FILE
from ..passes.progress_callback import Progress, silent
from ..specs import SpecError, Target, is_target_file, list_targets, load_target
from ..specs.plugins import BACKENDS
from .backends import run_backend
from .data import Samples, join, own_batch, run_calls, run_samples
from .emission import GRAPH_PARAMS, GRAPH_TEXT
from .errors import Problem, UserError, first_line, shorten
from .interface import INTERFACE_FILE, Interface, Port
from .lock import check_outputs, read_by_this_version
from .operators import load_operators
from .pipeline import HOST

_ALIGNMENT = 64  # of regions, states and weights
_PAINT = 0xA5
_Buffer: TypeAlias = "ctypes.Array[ctypes.c_char]"

PLACES = ("host", "torch", "integer")
"""Values of `on`, in addition to targets that can be simulated."""


@dataclass(frozen=True)
class Counts:
    """Counts of one simulated run, exact; cycles are estimated if the core has published timing; the image is in
    bytes.
    """

    instructions: int
    cycles: int | None
    stack_bytes: int
    footprint: Footprint
    simulator: str


@dataclass(frozen=True)
class Execution:
    """Outputs as reals in the order of the C, combined by `data.join`, and counts if a simulated core ran it."""

    outputs: tuple[Tensor, ...]
    stored: tuple[Tensor, ...]
    counts: Counts | None = None


def read_interface(directory: Path) -> Interface:
    """The interface of an output directory; UserError unless all its files exist and are unchanged."""
    lock = check_outputs(directory)
    with read_by_this_version(directory / INTERFACE_FILE, lock):
        return Interface.model_validate_json((directory / INTERFACE_FILE).read_bytes())


def execute(
    directory: Path, samples: Samples, *, on: str, name: str = "", progress: Progress = silent
) -> Execution:
    """Runs every sample on `on`, one of PLACES or a target; UserError for other values, BackendError for missing tools.

    A target is the name of a built-in one, the target of the network, or the path of a file. Messages show the
    network as `name`, or as its path if that is empty.
    """
    interface, name = read_interface(directory), name or str(directory)
    if on == "reference":
        fact = f"is the captured float graph, which {shorten(name)} does not contain"
        raise UserError(Problem("R405", f"on {on}", fact, "use the `run` of the compilation in Python"))
    if on == "torch":
        return _whole(_run_torch(directory, interface, samples, name))
    if on == "integer":
        return _whole(run_samples(load_graph(directory), samples, interpreter=run_integer))
    if on in BACKENDS.names():
        return _whole(_run_backend(on, directory, interface, samples, name))
    with tempfile.TemporaryDirectory(prefix="fxpress-run-") as folder:
        if on == "host":
            sources = c_sources(directory, interface, name)
            return _run_host(sources, directory, interface, samples, Path(folder), progress)
        target = _simulated_target(on, interface)
        sources = c_sources(directory, interface, name)
        return _run_simulated(sources, directory, interface, samples, Path(folder), target, progress)


def _simulated_target(on: str, interface: Interface) -> Target:
    """The target of `on`; UserError unless its core can be simulated."""
    able = list_simulated()
    if on not in (*list_targets(), interface.target.name) and not is_target_file(on):
        advice = f"there are {', '.join((*PLACES, *able))}, and target files"
        raise UserError(Problem("R405", f"on {on}", "is not a place to run", advice))
    target = interface.target if on == interface.target.name else load_target(on)
    if target.simulator is None:
        advice = f"the targets with one are {', '.join(able)}"
        raise UserError(Problem("R405", f"on {on}", "has no simulator", advice))
    return target


def list_simulated() -> list[str]:
    """Targets whose core can be simulated; for targets of packages, those that load."""
    found = []
    for name in list_targets():
        with contextlib.suppress(SpecError):
            found += [name] if load_target(name).simulator else []
    return found


def load_graph(directory: Path) -> Graph:
    """The compiled graph of an output directory with its constants; UserError if they were not written."""
    load_operators()
    lock = check_outputs(directory)
    if GRAPH_PARAMS not in lock.outputs:
        fact = f"has no {GRAPH_PARAMS}: the model was read from a folder"
        raise UserError(Problem("R417", str(directory), fact, "run the torch module"))
    text, params = directory / GRAPH_TEXT, directory / GRAPH_PARAMS
    with read_by_this_version(text, lock):
        stored = load_file(params)
        numbers = {name: numbers_of(tensor) for name, tensor in stored.items() if "@" in name}
        return parse(text.read_text(), params=stored, numbers=numbers)


def c_sources(directory: Path, interface: Interface, name: str) -> list[Path]:
    """The emitted C sources without the self-test; UserError, with `name`, if the spec did not request C."""
    if interface.c_name is None:
        raise UserError(Problem("R406", name, "contains no C", "add it to `outputs` in the spec"))
    names = (f"{interface.c_name}.c", f"{interface.c_name}_weights.c", *interface.c_kernels)
    return [directory / "c" / name for name in names]


def _whole(outputs: Sequence[Tensor]) -> Execution:
    return Execution(tuple(outputs), tuple(outputs))


def _run_torch(directory: Path, interface: Interface, samples: Samples, name: str) -> list[Tensor]:
    module = load_torch_module(directory, interface, name)
    with torch.no_grad():
        rows = run_calls(
            interface.input_values, interface.output_names, samples, lambda inputs: _as_list(module(*inputs))
        )
    return join(rows, own_batch(interface.input_values, samples))


def _run_backend(
    backend: str, directory: Path, interface: Interface, samples: Samples, name: str
) -> list[Tensor]:
    if not (directory / backend).is_dir():
        fact = f"contains no files of the backend {backend}"
        raise UserError(Problem("R406", name, fact, "add it to `outputs` in the spec"))
    rows = run_calls(
        interface.input_values,
        interface.output_names,
        samples,
        lambda inputs: run_backend(backend, directory / backend, inputs),
    )
    return join(rows, own_batch(interface.input_values, samples))


def load_torch_module(directory: Path, interface: Interface, name: str) -> nn.Module:
    """The emitted torch module of an output directory, with its weights, in evaluation mode."""
    file, attribute = "torch/model.py", interface.torch_class
    path = directory / file
    if attribute is None:
        raise UserError(Problem("R407", name, "has no torch module", "add it to `outputs` in the spec"))
    spec = importlib.util.spec_from_file_location("fxpress_emitted_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        loaded: nn.Module = getattr(module, attribute)()
    except Exception as err:  # the module uses the torch operators of the user's packages
        fact = f"cannot be loaded: {first_line(err)}"
        advice = "install its imports, in the versions it was compiled with"
        raise UserError(Problem("R413", f"{name}/{file}", fact, advice)) from err
    try:
        if hasattr(module, load_shards.__name__):
            module.load_shards(loaded, path.with_name(INDEX_FILE))
        else:
            load_model(loaded, path.with_name(WEIGHTS_FILE))
    except (
        Exception
    ) as err:  # errors of torch and safetensors for damaged files and for tensors of another module
        fact = f"the weights cannot be loaded: {first_line(err)}"
        raise UserError(
            Problem("R413", f"{name}/torch", fact, "copy the folder again, or compile again")
        ) from err
    return loaded.eval()


def _as_list(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, tuple | list)
    return list(result)


def _run_host(
    sources: Sequence[Path],
    directory: Path,
    interface: Interface,
    samples: Samples,
    folder: Path,
    progress: Progress,
) -> Execution:
    library = link_shared(_host_compiler(interface.target), sources, folder / "model.so", flags=())
    function = getattr(ctypes.CDLL(str(library)), interface.entry)
    sizes = interface.regions | ({STATE_BLOCK: interface.state_bytes} if interface.state_bytes else {})
    blocks = {name: _Guarded.of(size) for name, size in sizes.items()}
    inputs, outputs = (
        [_host_buffer(port) for port in interface.inputs],
        [_host_buffer(port) for port in interface.outputs],
    )
    passed = [ctypes.addressof(buffer) for buffer in inputs if buffer is not None]
    passed += [blocks[STATE_BLOCK].start] if interface.state_bytes else []
    passed += [ctypes.addressof(buffer) for buffer in outputs if buffer is not None]
    if interface.weights_file is not None:
        weights = np.memmap(directory / "c" / interface.weights_file, np.uint8, "r")
        passed.append(weights.ctypes.data)
    passed += [blocks[name].start for name in interface.regions]

    def place(port: Port, buffer: _Buffer | None) -> int:
        if buffer is not None:
            return ctypes.addressof(buffer)
        assert port.place is not None
        block, offset = port.place
        return blocks[block].start + offset

    read = [place(*pair) for pair in zip(interface.inputs, inputs, strict=True)]
    written = [place(*pair) for pair in zip(interface.outputs, outputs, strict=True)]

    def call(samples: Sequence[bytes]) -> list[bytes]:
        for to, data in zip(read, samples, strict=True):
            ctypes.memmove(to, data, len(data))
        status = function(*map(ctypes.c_void_p, passed))
        assert status == 0
        assert all(block.is_sound for block in blocks.values()), (
            "bytes outside a block of memory were written"
        )
        pairs = zip(written, interface.outputs, strict=True)
        return [ctypes.string_at(at, port.c_bytes) for at, port in pairs]

    return _collect(interface, samples, call, progress, "host")


def _host_buffer(port: Port) -> _Buffer | None:
    """The buffer of an input or output; None if it is in a region of RAM or in the block of states."""
    return None if port.place is not None else ctypes.create_string_buffer(port.c_bytes)


@dataclass(frozen=True)
class _Guarded:
    """A block of memory at `start`, aligned, with guard bytes before and after it."""

    buffer: _Buffer
    start: int
    bytes: int

    @staticmethod
    def of(size: int) -> _Guarded:
        """A new block."""
        buffer = ctypes.create_string_buffer(bytes([_PAINT]) * (size + 3 * _ALIGNMENT))
        start = -(-ctypes.addressof(buffer) // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
        return _Guarded(buffer, start, size)

    @property
    def is_sound(self) -> bool:
        """True if the guard bytes are unchanged."""
        guard = bytes([_PAINT]) * _ALIGNMENT
        return (
            guard
            == ctypes.string_at(self.start - _ALIGNMENT, _ALIGNMENT)
            == ctypes.string_at(self.start + self.bytes, _ALIGNMENT)
        )


def _host_compiler(target: Target) -> Compiler:
    """The compiler of a computer's target; for networks for other targets GCC, with moderate optimization for fast
    compilation.
    """
    return target_compiler(target) if target.isa == HOST else replace(find_compiler("gcc"), machine=("-O2",))


def _run_simulated(
    sources: Sequence[Path],
    directory: Path,
    interface: Interface,
    samples: Samples,
    folder: Path,
    target: Target,
    progress: Progress,
) -> Execution:
    compiler, entry = target_compiler(target), interface.entry
    image = build_image(compiler, sources, folder / "model.elf", keep=[entry])
    ports = (*interface.inputs, *interface.outputs)
    model = SimulatedModel(
        Simulator(image, target=target),
        entry,
        input_bytes=[port.c_bytes for port in interface.inputs],
        output_bytes=[port.c_bytes for port in interface.outputs],
        regions=interface.regions,
        places=[port.place for port in ports],
        state_bytes=interface.state_bytes,
        weights=b""
        if interface.weights_file is None
        else (directory / "c" / interface.weights_file).read_bytes(),
    )
    first = samples.call(interface.input_values, 0)
    profile = model.profile([port.to_c(x) for port, x in zip(interface.inputs, first, strict=True)])
    executed = _collect(interface, samples, model.run, progress, target.name)
    counts = Counts(
        profile.instructions,
        profile.cycles,
        model.stack_bytes,
        read_elf(image).footprint,
        f"unicorn, {target.simulator}",
    )
    return Execution(executed.outputs, executed.stored, counts)


def _collect(
    interface: Interface,
    samples: Samples,
    call: Callable[[Sequence[bytes]], list[bytes]],
    progress: Progress,
    label: str,
) -> Execution:
    rows: list[list[bytes]] = []
    total = samples.calls(interface.input_values)

    def reals(inputs: list[Tensor]) -> list[Tensor]:
        rows.append(call([port.to_c(x) for port, x in zip(interface.inputs, inputs, strict=True)]))
        progress(label, len(rows), total)
        return [port.from_c(buffer) for port, buffer in zip(interface.outputs, rows[-1], strict=True)]

    outputs = run_calls(interface.input_values, interface.output_names, samples, reals)
    stored = [
        [port.integers(buffer) for port, buffer in zip(interface.outputs, row, strict=True)] for row in rows
    ]
    batch = own_batch(interface.input_values, samples)
    return Execution(tuple(join(outputs, batch)), tuple(join(stored, batch)))
