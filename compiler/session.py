"""State that the stages of a compilation share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..ir import Graph
from ..passes import PassReport
from ..specs import FolderSource, Loaded, Spec, Target
from .data import Samples
from .metric import Metric


@dataclass(frozen=True)
class Stage:
    """The graph after a pass, its report, and the states and time axes of a streamed network, as in `PassResult`."""

    name: str
    graph: Graph
    report: PassReport
    state: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """A spec with everything that it names loaded: the captured model and its data.

    `own_model` is True if the caller gave the module: neither source nor weights were read. `buffers` are the
    constants that training does not change. `sequences` are the calibration samples of a model with states as read;
    in `calibration` each sample has the states of the float network. `frames` are the time axes, by name, of inputs
    that take new frames of a stream.
    """

    loaded: Loaded
    captured: Graph
    calibration: Samples | None
    evaluation: Samples | None
    metric: Metric | None = None
    own_model: bool = False
    notes: tuple[str, ...] = ()
    buffers: frozenset[str] = frozenset()
    sequences: Samples | None = None
    frames: Mapping[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """The spec."""
        return self.loaded.spec

    @property
    def target(self) -> Target:
        """The target, with the spec's changes."""
        return self.loaded.target

    @property
    def is_folder(self) -> bool:
        """True if the model is read from a folder tensor by tensor, because it may be larger than memory."""
        return not self.own_model and isinstance(self.spec.model.source, FolderSource)


def final_graph(session: Session, stages: Sequence[Stage]) -> Graph:
    """The graph after the last pass."""
    return stages[-1].graph if stages else session.captured


def window_graph(session: Session, stages: Sequence[Stage]) -> Graph:
    """The graph after the last pass whose inputs are those of the samples: before `stream`, if the spec has it."""
    return final_graph(session, [stage for stage in stages if not stage.frames])
