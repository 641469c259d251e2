"""Backend protocol: writes a graph as files, with options in its own section under `outputs`.

The module `backends.c` is an implementation. A package adds another backend through two entry points of the same
name: its options through `fxpress.backend_options`, the backend, a module or an object, through `fxpress.backends`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from ..ir import Graph
from ..specs import Section, Target, Transform
from .errors import Problem

Options_contra = TypeVar("Options_contra", bound=Section, contravariant=True)


class Artifact(Protocol):
    """Files that a backend writes for a graph."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Content by name; written to the folder of the backend in the output directory."""


class Backend(Protocol[Options_contra]):
    """Writer of a graph as files; equal arguments give equal bytes."""

    def check(self, graph: Graph, options: Options_contra, target: Target) -> Sequence[Problem]:
        """All reasons why the graph cannot be written, together."""

    def emit(
        self,
        graph: Graph,
        options: Options_contra,
        target: Target,
        *,
        vectors: Sequence[Sequence[Tensor]] = (),
        transforms: Mapping[str, Transform] = {},
        states: Mapping[str, str] = {},
    ) -> Artifact:
        """The files of a graph that passed `check`.

        `vectors` are inputs of calls, for tests that the backend may write. `transforms` and `states` are those of
        the spec: conversions from file to input, and the outputs that inputs continue.
        """


@runtime_checkable
class Runnable(Protocol):
    """A backend whose files can be run by `fxpress run DIR --on NAME`."""

    def run(self, folder: Path, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs of one call of the files that `emit` wrote to `folder`."""
