"""The plan of a pruning: which channels stay, and of which graph. Applied to that graph it gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..ir import Graph, dump
from ..ir.coupling import STAYS, Coupling
from .errors import PassError

PLAN_VERSION = 2


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
        "whole_heads": coupling.whole_heads,
        "before": digest(coupling.graph),
        "after": digest(after),
        "groups": groups,
    }
    return (json.dumps(plan, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Plan:
    """A plan as it was read: which graph it is for, and which units of each group stay."""

    path: Path
    before: str
    whole_heads: bool
    sizes: list[int]
    kept: list[np.ndarray]

    def removed(self, coupling: Coupling) -> np.ndarray:
        """The units that go; PassError when the plan is not of this graph."""
        if self.before != digest(coupling.graph) or self.sizes != np.bincount(coupling.groups).tolist():
            raise PassError(f"{self.path} is the plan of another graph; prune anew with a budget")
        removed = np.ones(coupling.count, dtype=bool)
        empty = {group for group, stay in enumerate(self.kept) if not len(stay)}
        dropped = {
            g for branch in coupling.branches if empty.issuperset(branch.groups) for g in branch.groups
        }
        for group, stay in enumerate(self.kept):
            if group in dropped:
                continue
            if len(stay) == 0 or stay.min() < 0 or stay.max() >= self.sizes[group]:
                raise PassError(f"{self.path}: group {group} keeps units that it does not have")
            removed[np.flatnonzero(coupling.groups == group)[stay]] = False
        return removed


def read_plan(path: Path) -> Plan:
    """The plan in a file; PassError when it is none."""
    try:
        plan = json.loads(path.read_bytes())
        version, before, whole_heads = plan["fxpress_plan"], str(plan["before"]), bool(plan["whole_heads"])
        sizes = [int(group["size"]) for group in plan["groups"]]
        kept = [np.array(group["kept"], dtype=np.int64) for group in plan["groups"]]
    except OSError as err:
        raise PassError(f"{path}: {err.strerror}") from err
    except (ValueError, KeyError, TypeError) as err:
        raise PassError(f"{path} is no plan of a pruning") from err
    if version != PLAN_VERSION:
        raise PassError(f"{path} is a plan of another version of fxpress; prune anew with a budget")
    return Plan(path, before, whole_heads, sizes, kept)
