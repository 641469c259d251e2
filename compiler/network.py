"""A compiled network in an output directory: interface, graph, report, and execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..ir import Graph
from ..passes.progress_callback import Progress, silent
from ..specs import Transform
from ..specs.root_error import expect
from .arrays import LABELS, Arrays, SampleArrays
from .compare import read_report
from .data import Column, Samples, read_samples
from .errors import Problem, UserError
from .execution import Execution, c_sources, execute, load_graph, load_torch_module, read_interface
from .interface import Interface
from .report import Report
from .text_generation import TextModel

Data = SampleArrays | str | Path | Samples


@dataclass(frozen=True)
class CompiledNetwork:
    """An output directory of `fxpress compile` or `Compiled.write` with unchanged files.

    Messages show `name`, or the path if it is empty.
    """

    directory: Path
    interface: Interface
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.directory)

    @property
    def graph(self) -> Graph:
        """The compiled graph, constants included."""
        return load_graph(self.directory)

    @property
    def report(self) -> Report:
        """The report of the compilation."""
        return read_report(self.directory)

    @property
    def module(self) -> nn.Module:
        """The emitted torch module, in evaluation mode; UserError if the spec did not request one."""
        return load_torch_module(self.directory, self.interface, str(self))

    @property
    def c_sources(self) -> list[Path]:
        """The emitted C sources without the self-test; UserError if the spec did not request C."""
        return c_sources(self.directory, self.interface, str(self))

    @property
    def text_model(self) -> TextModel:
        """The emitted torch module of a language model with caches, for text generation; UserError for other
        networks.
        """
        return TextModel(self.module, self.interface, self.directory, str(self))

    def run(self, data: Data, *, on: str | Path = "host", progress: Progress = silent) -> Execution:
        """Runs every sample on `host`, `torch`, `integer`, a target or a target file; returns the outputs in order."""
        expect(on, (str, Path), "run(on=...)", "`host`, `torch`, `integer`, a target or a target file")
        samples = samples_of(self.interface, data)
        return execute(self.directory, samples, on=str(on), name=str(self), progress=progress)


def load_compiled(directory: str | Path) -> CompiledNetwork:
    """The compiled network of an output directory; UserError unless all its files exist and are unchanged."""
    expect(directory, (str, Path), "load_compiled(directory)", "the path of an output directory")
    return CompiledNetwork(Path(directory), read_interface(Path(directory)))


def samples_of(
    interface: Interface,
    data: Data,
    *,
    arrays: Mapping[str, str] = {},
    labels: str | None = None,
    limit: int | None = None,
) -> Samples:
    """Samples of an npz file or of arrays [n, ...], with the spec's `data.transform`; the first `limit` of them.

    `arrays` has the array of each input, by default that of the same name. Arrays in memory have their labels under
    `labels`. UserError for arrays that do not fit the inputs.
    """
    if isinstance(data, Samples):
        return data.first(limit)
    columns = [
        Column(
            arrays.get(port.name, port.name),
            port.type,
            port.transform or Transform(),
            port.batch,
            interface.state.get(port.name),
            port.dynamic,
            port.frames_axis,
        )
        for port in interface.inputs
    ]
    names = interface.input_names
    origin = (
        Path(data)
        if isinstance(data, str | Path)
        else Arrays.of(data, names, place="run(data)", call="run(data)", states=interface.state)
    )
    if isinstance(origin, Arrays) and labels is None and LABELS in origin.by_name.keys() - names:
        labels = LABELS
    samples = read_samples(origin, columns, labels=labels, limit=limit)
    if not samples.calls(interface.input_values):
        fact = f"{len(samples)} samples are fewer than the network takes at once"
        raise UserError(Problem("D105", str(origin), fact, "give more"))
    return samples
