"""docs/methods.md: the catalogue of methods with the measured results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .catalogue import FAMILIES, Method, load_methods

_PAGE = """\
# Methods

Made by `python -m fxpress.compiler.methods benchmarks/results/methods.json > docs/methods.md`; a test compares it with
the code.

Methods of the literature, each on a small network with the baseline that its paper compares with, over three seeds;
rows without figures are not measured yet.

`make bench-methods` measures all of them; `.venv/bin/python benchmarks/methods.py NAME` one. *Reproduced*
means: the difference has the direction of the paper, and is greater than the spread (the sum of both standard
deviations over the seeds) and than the margin, if the method has one. Recipes were chosen on validation data.
`fxpress explain method NAME` prints an entry.
"""
_HEADER = "| method | network, data | metric | baseline | result | spread | reproduced |\n|---|---|---|---|---|---|---|"


def methods_document(results: str) -> str:
    """The page as Markdown; `results` is the text of the results file."""
    rows = {row["method"]: row for row in json.loads(results)["methods"]}
    methods = load_methods()
    parts = [_PAGE, _HEADER]
    parts += [_line(name, methods[name], rows.get(name)) for name in methods]
    for family in FAMILIES:
        named = [name for name in methods if methods[name].family == family]
        if named:
            parts.append(f"\n## {family.capitalize()}")
            parts += [_section(name, methods[name], rows.get(name)) for name in named]
    return "\n".join(parts) + "\n"


def _line(name: str, method: Method, row: Mapping[str, Any] | None) -> str:  # any: JSON
    measured = "| | | | not measured" if row is None else _cells(method, row)
    return f"| [{name}](#{name}) | {method.network}, {method.data} | {method.metric} {measured} |"


def _cells(method: Method, row: Mapping[str, Any]) -> str:  # any: JSON
    reproduced = "yes" if row["reproduced"] else "no"
    baseline = f"{row['baseline']:g} ({method.baseline_is})"
    return f"| {baseline} | {row['result']:g} | {row['spread']:g} | {reproduced}"


def _section(name: str, method: Method, row: Mapping[str, Any] | None) -> str:  # any: JSON
    spec = f"```yaml\n{method.applies.strip()}\n```"
    parts = [f"\n### {name}", f"{method.title}. {method.source}.", f"{method.does} {method.pays}", spec]
    if row is not None:
        difference = row["result"] - row["baseline"]
        said = "" if row["reproduced"] else " The effect of the paper is not reproduced."
        parts.append(
            f"Measured: {row['result']:g} against {row['baseline']:g} ({method.baseline_is}), {difference:+.3g} with a "
            f"spread of {row['spread']:g}.{said}"
        )
    if method.remark is not None:
        parts.append(method.remark.strip())
    return "\n\n".join(parts)
