"""The plan of a pruning: which channels stay, and of which graph. Applied to that graph it gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from ..ir import Graph, dump
from ..ir.coupling import STAYS, Coupling
from .errors import PassError

PLAN_VERSION = 1


def digest(graph: Graph) -> str:
    """SHA-256 of a graph's text and of the bytes of its constants."""
    sha = hashlib.sha256(dump(graph).encode())
    for name in sorted(graph.params):
        sha.update(name.encode())
        sha.update(graph.params[name].detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def plan_bytes(coupling: Coupling, removed: np.ndarray, after: Graph) -> bytes:
    """The plan as JSON: for each group its constants' dimensions, its size and the units that stay."""
    places: dict[int, list[str]] = {}
    for value, dimension, units in coupling.members:
        for group in np.unique(coupling.groups[units[units != STAYS]]).tolist():
            places.setdefault(group, []).append(f"{value.name}:{dimension}")
    groups = []
    for group in range(int(coupling.groups.max()) + 1 if coupling.count else 0):
        units = np.flatnonzero(coupling.groups == group)
        kept = np.flatnonzero(~removed[units]).tolist()
        groups.append({"places": places.get(group, []), "size": len(units), "kept": kept})
    plan = {
        "fxpress_plan": PLAN_VERSION,
        "before": digest(coupling.graph),
        "after": digest(after),
        "groups": groups,
    }
    return (json.dumps(plan, indent=1) + "\n").encode()


def read_plan(path: Path, coupling: Coupling) -> np.ndarray:
    """The units that a plan removes; PassError when it is none, or one of another graph."""
    try:
        plan = json.loads(path.read_bytes())
        version, before, groups = plan["fxpress_plan"], plan["before"], plan["groups"]
        sizes = [int(group["size"]) for group in groups]
        kept = [np.array(group["kept"], dtype=np.int64) for group in groups]
    except OSError as err:
        raise PassError(f"{path}: {err.strerror}") from err
    except (ValueError, KeyError, TypeError) as err:
        raise PassError(f"{path} is no plan of a pruning") from err
    if version != PLAN_VERSION or before != digest(coupling.graph):
        raise PassError(f"{path} is the plan of another graph; prune anew with a budget")
    if sizes != np.bincount(coupling.groups).tolist():
        raise PassError(f"{path} is the plan of another graph; prune anew with a budget")
    removed = np.ones(coupling.count, dtype=bool)
    for group, stay in enumerate(kept):
        if len(stay) == 0 or stay.min() < 0 or stay.max() >= sizes[group]:
            raise PassError(f"{path}: group {group} keeps units that it does not have")
        removed[np.flatnonzero(coupling.groups == group)[stay]] = False
    return removed
