"""The plan of a pruning: the kept channels, and the digest of their graph. Applied to that graph it gives the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...ir import Graph, Precision, element_bytes
from ...ir.coupling import STAYS, Coupling, Kept
from ...ir.digest import digest
from ..errors import PassError

PLAN_VERSION = 2
Layers = Mapping[str, Precision]


def plan_bytes(steps: Sequence[tuple[Kept, Graph, Layers]], data: Sequence[Sequence[torch.Tensor]]) -> bytes:
    """The plan as JSON: for each step and group the dimensions of constants, the size and the kept units.

    A step has the kept units of its graph, the graph after it, and the bits of layers that were decided with it;
    `data` are the samples of scores and repairs.
    """
    plan = {
        "fxpress_plan": PLAN_VERSION,
        "tool": f"fxpress {version('fxpress')}",
        "data": data_digest(data) if data else None,
        "steps": [_step(*step) for step in steps],
    }
    return (json.dumps(plan, indent=1) + "\n").encode()


def data_digest(data: Sequence[Sequence[torch.Tensor]]) -> str:
    """SHA-256 of samples."""
    sha = hashlib.sha256()
    for tensor in (tensor for inputs in data for tensor in inputs):
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(element_bytes(tensor))
    return sha.hexdigest()


def places_of(coupling: Coupling) -> dict[int, list[str]]:
    """The constants' dimensions of each group, as `name:dimension`."""
    places: dict[int, list[str]] = {}
    for value, dimension, units in coupling.members:
        for group in np.unique(coupling.groups[units[units != STAYS]]).tolist():
            places.setdefault(group, []).append(f"{value.name}:{dimension}")
    return places


def _step(kept: Kept, after: Graph, layers: Layers) -> dict[str, object]:
    coupling, places = kept.coupling, places_of(kept.coupling)
    groups = []
    for group in range(int(coupling.groups.max()) + 1):
        units = np.flatnonzero(coupling.groups == group)
        stay = np.flatnonzero(~kept.removed[units]).tolist()
        groups.append({"places": places.get(group, []), "size": len(units), "kept": stay})
    return {
        "whole_heads": coupling.whole_heads,
        "before": digest(coupling.graph),
        "after": digest(after),
        "groups": groups,
        **({"layers": {module: f"int{p.weights}" for module, p in layers.items()}} if layers else {}),
    }


@dataclass(frozen=True)
class Plan:
    """One step of a plan that was read: digest of its graph, kept units of each group, and the bits of layers."""

    path: Path
    before: str
    whole_heads: bool
    sizes: list[int]
    kept: list[np.ndarray]
    layers: Layers

    def removed(self, coupling: Coupling) -> np.ndarray:
        """The removed units; PassError if the plan is for another graph."""
        if self.before != digest(coupling.graph) or self.sizes != np.bincount(coupling.groups).tolist():
            raise PassError(f"{self.path} is the plan of another graph; prune again with a budget")
        removed = np.ones(coupling.count, dtype=bool)
        empty = {group for group, stay in enumerate(self.kept) if not len(stay)}
        dropped = {
            g for branch in coupling.branches if empty.issuperset(branch.groups) for g in branch.groups
        }
        for group, stay in enumerate(self.kept):
            if group in dropped:
                continue
            if len(stay) == 0 or stay.min() < 0 or stay.max() >= self.sizes[group]:
                raise PassError(f"{self.path}: group {group} has fewer units than the plan")
            removed[np.flatnonzero(coupling.groups == group)[stay]] = False
        return removed


def read_plan(path: Path) -> tuple[Plan, ...]:
    """The steps of the plan in a file; PassError if the file is not a plan."""
    try:
        plan = json.loads(path.read_bytes())
        number, steps = plan["fxpress_plan"], plan["steps"] if plan["fxpress_plan"] == PLAN_VERSION else ()
        plans = tuple(_read_step(path, step) for step in steps)
    except OSError as err:
        raise PassError(f"{path}: {err.strerror}") from err
    except (ValueError, KeyError, TypeError) as err:
        raise PassError(f"{path} is not a pruning plan") from err
    if number != PLAN_VERSION or not plans:
        raise PassError(f"{path} is a plan of another version of fxpress; prune again with a budget")
    return plans


def _read_step(path: Path, step: Mapping[str, Any]) -> Plan:  # any: JSON, each part checked as it is read
    sizes = [int(group["size"]) for group in step["groups"]]
    kept = [np.array(group["kept"], dtype=np.int64) for group in step["groups"]]
    layers = {str(module): _precision(bits) for module, bits in step.get("layers", {}).items()}
    return Plan(path, str(step["before"]), bool(step["whole_heads"]), sizes, kept, layers)


def _precision(name: object) -> Precision:
    """The precision of a layer with this type of weights; ValueError for an unknown one."""
    widths = {f"int{bits}": Precision(bits) for bits in (2, 4, 8)}
    if name not in widths:
        raise ValueError(f"{name!r} is not a type of weights")
    return widths[str(name)]
