"""The state of a training in a file: written whole or not at all, and only taken up by the same training."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...ir import Graph, element_bytes
from ...specs.options import FinetuneOptions
from ..errors import PassError
from ..pruning.plan import digest
from .lesson import Lesson
from .optimizer import OptimizerState

_VERSION = 1
Row = tuple[int, float | None, float, float | None]


@dataclass(frozen=True)
class Progressed:
    """A training after some epochs: what is learned, the best so far, the optimizer, and a row for each epoch."""

    learned: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    state: OptimizerState
    rows: tuple[Row, ...]  # epoch, training loss, validation loss, validation accuracy

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.rows) - 1

    @property
    def best_epoch(self) -> int:
        """The first epoch with the least validation loss."""
        return min(range(len(self.rows)), key=lambda epoch: self.rows[epoch][2])


def training_digest(
    graph: Graph, options: FinetuneOptions, lesson: Lesson, *, resumes: OptimizerState | None
) -> str:
    """SHA-256 of all that a training depends on: graph, options, samples, labels, the optimizer at the start."""
    sha = hashlib.sha256(digest(graph).encode())
    sha.update(options.model_dump_json(exclude={"checkpoint"}).encode())
    tensors = [*lesson.inputs, *([] if lesson.labels is None else [lesson.labels])]
    if resumes is not None:
        sha.update(str(resumes.steps).encode())
        tensors += [tensor for of_kind in resumes.moments.values() for tensor in of_kind.values()]
    for tensor in tensors:
        sha.update(element_bytes(tensor))
    return sha.hexdigest()


def save(path: Path, progressed: Progressed, identity: str) -> None:
    """Write the state, such that the file holds an old one or a new one at any moment; PassError where it cannot."""
    content = {
        "version": _VERSION,
        "identity": identity,
        "learned": _plain(progressed.learned),
        "best": _plain(progressed.best),
        "steps": progressed.state.steps,
        "moments": {kind: _plain(of_kind) for kind, of_kind in progressed.state.moments.items()},
        "rows": [list(row) for row in progressed.rows],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as err:
        raise PassError(f"checkpoint {path} cannot be written: {err.strerror}") from err


def load(path: Path, identity: str) -> Progressed | None:
    """The state in a file, None where there is no file; PassError for one that is of another training, or none."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, found = content["version"], content["identity"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError) as err:
        raise PassError(f"checkpoint {path} is none; remove it, or name another file") from err
    if version != _VERSION or found != identity:
        raise PassError(
            f"checkpoint {path} is of another training: the graph, the options or the data differ; remove it, or name "
            "another file"
        )
    state = OptimizerState(content["steps"], content["moments"])
    return Progressed(
        content["learned"], content["best"], state, tuple(tuple(row) for row in content["rows"])
    )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
