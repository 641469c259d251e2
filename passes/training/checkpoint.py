"""Training checkpoints: written atomically, and loaded only by a training with the same graph, options and data."""

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
from ...ir.digest import digest
from ...specs.options import FinetuneOptions
from ..errors import PassError
from .optimizer import OptimizerState
from .split import Split

_VERSION = 2
Row = tuple[int, float | None, float, float | None]


@dataclass(frozen=True)
class TrainingState:
    """State after some epochs: parameters, the best parameters so far, optimizer state, and a row per epoch."""

    parameters: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    state: OptimizerState
    rows: tuple[Row, ...]  # epoch, training loss, validation loss, validation accuracy

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return len(self.rows) - 1

    @property
    def best_epoch(self) -> int:
        """First epoch with the lowest validation loss."""
        return min(range(len(self.rows)), key=lambda epoch: self.rows[epoch][2])


def training_digest(
    graph: Graph,
    options: FinetuneOptions,
    split: Split,
    *,
    teacher: Graph | None,
    resumes: OptimizerState | None,
    identity: str,
) -> str:
    """SHA-256 of everything a training depends on: graph, teacher, options, samples, initial optimizer state.

    `identity`: text of further settings that the training depends on.
    """
    sha = hashlib.sha256(digest(graph).encode())
    sha.update(identity.encode())
    if teacher is not None:
        sha.update(digest(teacher).encode())
    sha.update(options.model_dump_json(exclude={"checkpoint"}).encode())
    tensors = [*split.inputs, *([] if split.labels is None else [split.labels])]
    if resumes is not None:
        sha.update(str(resumes.steps).encode())
        tensors += [tensor for of_kind in resumes.moments.values() for tensor in of_kind.values()]
    for tensor in tensors:
        sha.update(element_bytes(tensor))
    return sha.hexdigest()


def save(path: Path, reached: TrainingState, identity: str) -> None:
    """Write the state atomically; PassError if that fails."""
    content = {
        "version": _VERSION,
        "identity": identity,
        "parameters": _plain(reached.parameters),
        "best": _plain(reached.best),
        "steps": reached.state.steps,
        "moments": {kind: _plain(of_kind) for kind, of_kind in reached.state.moments.items()},
        "rows": [list(row) for row in reached.rows],
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


def load(path: Path, identity: str) -> TrainingState | None:
    """State in a file, None if the file does not exist; PassError if it is invalid or of another training."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, found = content["version"], content["identity"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError) as err:
        raise PassError(f"{path} is not a checkpoint; remove it, or name another file") from err
    if version != _VERSION or found != identity:
        raise PassError(
            f"checkpoint {path} belongs to another training: graph, options or data differ; remove it, or name "
            "another file"
        )
    state = OptimizerState(content["steps"], content["moments"])
    return TrainingState(
        content["parameters"], content["best"], state, tuple(tuple(row) for row in content["rows"])
    )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
