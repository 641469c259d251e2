"""Tensors of a checkpoint, by the names of a model's state dict and the rules with which transformers loads them.

Names differ (`encoder.layer.` in the file of a ViT is `layers.` in its module), and so do layouts: the experts of a
Mixtral are separate tensors in the file, and one tensor in the module. No tensor is read here; a tensor computed from
others is lazy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ir import Entry, LazyTensor, Params
from .errors import Problem, first_line
from .isolation import USER_CODE_RAISES


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor in the form of the model, and the names of its source tensors in the files."""

    entry: Entry
    sources: tuple[str, ...]


def checkpoint_tensors(
    model: nn.Module, state: Mapping[str, Tensor], stored: Params, place: str
) -> tuple[dict[str, CheckpointTensor], list[Problem]]:
    """Tensors of the files by the names of the model's state dict, and problems of those that cannot be converted.

    Names of the file that are already names of the state dict are used directly; the prefix of the base model may be
    absent.
    """
    loading = importlib.import_module("transformers.core_model_loading")
    rules = importlib.import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
    prefix = getattr(model, "base_model_prefix", "")
    found, parts = dict[str, CheckpointTensor](), dict[str, list[tuple[str, str]]]()
    for name in sorted(stored, key=loading.dot_natural_key):  # experts in numerical order
        own, pattern = loading.rename_source_key(name, renamings, converters, prefix, state)
        if own not in state and name in state:
            own, pattern = name, None
        if own not in state:
            continue
        if pattern is None:
            found.setdefault(own, CheckpointTensor(stored.entry(name), (name,)))
        else:
            parts.setdefault(own, []).append((pattern, name))
    problems = list[Problem]()
    for own, sources in parts.items():
        rule = next(rule for rule in converters if sources[0][0] in rule.source_patterns)
        names = tuple(name for _, name in sources)
        try:
            made = _converted(model, rule, own, sources, lambda name: _meta(stored.entry(name)))
        except USER_CODE_RAISES as err:
            fact = f"{own} cannot be computed from {', '.join(names[:2])}: {first_line(err)}"
            problems.append(Problem("M112", place, fact, "check that `architectures` fits the files"))
            continue
        for target, tensor in made.items():
            load = partial(_one_converted, model, rule, own, sources, stored.__getitem__, target)
            entry = LazyTensor(tuple(tensor.shape), tensor.dtype, load)
            found.setdefault(target, CheckpointTensor(entry, names))
    return found, problems


def _meta(entry: Entry) -> Tensor:
    return torch.empty(tuple(entry.shape), dtype=entry.dtype, device="meta")


def _converted(
    model: Any,  # Any: a model of transformers, which is optional and not seen by mypy
    rule: Any,  # Any: as above
    own: str,
    sources: list[tuple[str, str]],
    read: Callable[[str], Tensor],
) -> dict[str, Tensor]:
    """Tensors of the model that one rule computes, by name; `sources` are (pattern of the rule, name in the file)."""
    used = deepcopy(rule)
    for pattern, name in sources:
        used.add_tensor(own, name, pattern, partial(read, name))
    made = used.convert(own, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _one_converted(
    model: Any,  # Any: as above
    rule: Any,  # Any: as above
    own: str,
    sources: list[tuple[str, str]],
    read: Callable[[str], Tensor],
    target: str,
) -> Tensor:
    return _converted(model, rule, own, sources, read)[target].contiguous()
