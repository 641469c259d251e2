"""Pass reports: decisions with reasons, and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..ir import Source

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Decision:
    """One match of a rule, with its reason, whether it was applied or not."""

    rule: str
    name: str  # value that the node of the decision computes
    source: Source
    applied: bool
    reason: str
    detail: Mapping[str, Cell] = field(default_factory=dict)

    def to_json(self) -> dict[str, Cell | dict[str, Cell]]:
        """Plain data for `report.json`."""
        return {
            "rule": self.rule,
            "name": self.name,
            "module": self.source.module,
            "location": self.source.location,
            "applied": self.applied,
            "reason": self.reason,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `columns` are its column names, with units."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)

    def to_json(self) -> dict[str, object]:
        """Plain data for `report.json`."""
        return {"name": self.name, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


@dataclass(frozen=True, slots=True)
class PassReport:
    """Report of one pass on one graph: applied and rejected decisions."""

    pass_name: str
    decisions: tuple[Decision, ...] = ()
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)  # files for a later run, by name

    @property
    def applied(self) -> Mapping[str, int]:
        """Number of applications of each rule."""
        return Counter(d.rule for d in self.decisions if d.applied)

    @property
    def declined(self) -> Mapping[str, Mapping[str, int]]:
        """For each rule, the number of rejected matches, by reason."""
        reasons: dict[str, Counter[str]] = {}
        for decision in self.decisions:
            if not decision.applied:
                reasons.setdefault(decision.rule, Counter())[decision.reason] += 1
        return reasons

    def table(self, name: str) -> Table:
        """The table with this name; KeyError if there is none."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(name)

    def to_json(self) -> dict[str, object]:
        """Plain data for `report.json`."""
        return {
            "pass": self.pass_name,
            "applied": dict(self.applied),
            "declined": {rule: dict(reasons) for rule, reasons in self.declined.items()},
            "decisions": [d.to_json() for d in self.decisions],
            "tables": [t.to_json() for t in self.tables],
            "warnings": list(self.warnings),
        }


def merged(pass_name: str, parts: Sequence[PassReport]) -> PassReport:
    """One report of several steps, in order."""
    return PassReport(
        pass_name,
        tuple(d for part in parts for d in part.decisions),
        tuple(t for part in parts for t in part.tables),
        tuple(w for part in parts for w in part.warnings),
        {name: data for part in parts for name, data in part.files.items()},
    )
