"""Entries of the catalogue, one YAML file each, for `fxpress explain method NAME`, docs/methods.md and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import yaml

from ...specs.section import Section
from ..errors import Problem, UserError, shorten

Family: TypeAlias = Literal["quantization", "pruning", "distillation", "adaptation", "combination"]
FAMILIES: tuple[Family, ...] = get_args(Family)


class Method(Section):
    """A method, and how its effect is measured: the spec examples/methods/NAME.yaml against a baseline.

    `margin` is the least difference, in the unit of `metric` and towards better, that counts as the effect of the
    paper; it is negative for methods that lose little, such as quantization against the float network.
    """

    title: str
    family: Family
    source: str  # authors, venue, year
    does: str
    pays: str  # when the method pays, and what it costs
    applies: str  # lines of a spec
    network: str
    data: str
    metric: str = "correct, %"
    better: Literal["higher", "lower"] = "higher"
    baseline_is: str
    baseline: tuple[str, ...] = ()  # overrides of the spec that make the baseline
    seeds: tuple[str, ...] = ("passes[1].finetune.seed",)  # settings that take the seed; see `seeded`
    margin: float | None = None  # None: outside the spread of the seeds
    trained: tuple[str, ...] = ()  # networks that examples/methods/train.py trains for it
    remark: str | None = None  # on what was measured


def seeded(setting: str, seed: int, folder: Path) -> str:
    """An override with a seed: `setting` is a path in the spec, or an override with {seed} and {folder}, that of
    examples/methods.
    """
    if "{seed}" in setting:
        return setting.replace("{seed}", str(seed)).replace("{folder}", str(folder))
    return f"{setting}={seed}"


@cache
def load_methods() -> Mapping[str, Method]:
    """All entries by name, by family and in the order of names."""
    folder = files(__package__) / "entries"
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".yaml"):
            found[file.name.removesuffix(".yaml")] = Method(**yaml.safe_load(file.read_text("utf-8")))
    order = sorted(found, key=lambda name: (FAMILIES.index(found[name].family), name))
    return MappingProxyType({name: found[name] for name in order})


def explain_method(name: str | None) -> str:
    """Effect of a method, conditions in which it pays, and lines of a spec; without a name, all names.

    UserError with the most similar names if it does not exist.
    """
    methods = load_methods()
    if name is None:
        return "\n".join(_listed(methods, family) for family in FAMILIES)
    if name not in methods:
        near = get_close_matches(name.lower().replace("-", "_"), methods, n=4, cutoff=0.4)
        hint = f"near: {', '.join(near)}" if near else "`fxpress explain method` lists the names"
        raise UserError(Problem("R416", f"explain method {shorten(name)}", "is not a method", hint))
    method = methods[name]
    spec = "".join(f"  {line}\n" for line in method.applies.strip().splitlines())
    return (
        f"{method.title} ({method.source})\n{fill(method.does, 100)}\n{fill(method.pays, 100)}\n\n{spec}\n"
        f"Measured on {method.network}, {method.data}, against: {method.baseline_is}; figures: docs/methods.md."
    )


def _listed(methods: Mapping[str, Method], family: Family) -> str:
    names = [name for name in methods if methods[name].family == family]
    return fill(f"{family}: {', '.join(names) or 'none'}", 100, subsequent_indent="  ")
