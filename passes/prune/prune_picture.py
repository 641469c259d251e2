"""A chart of the groups over the graph: one self-contained SVG, a row for each node, a colour for each group.

Each group on a node's results or weights has a box in its row, filled in proportion to the kept units. Boxes of one
group are in one lane and connected, so that a residual stream is one long bar. Next to them are operator, module,
shape before and after, and at the first row of a group the number of its kept units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...ir import Graph, Node, Value
from ...ir.coupling import STAYS, Kept
from ..drawing import box, colour, document, line, shortened, text, titled, width_of

_ROW, _LANE, _BOX, _MARGIN, _GAP = 18, 16, 11, 16, 20
_HEAD = 84
_MODULE_LETTERS = 44
_STRIPE, _FRAME, _QUIET = "#f3f5f8", "#d0d7de", "#6e7781"
_LEGEND = (
    ("a group, filled in proportion to its kept units", ""),
    ("shape as before", "quiet"),
    ("smaller", ""),
    ("gone", "gone"),
)


@dataclass(frozen=True)
class _Span:
    """A group in its rows, drawn in a separate lane there."""

    group: int
    rows: tuple[int, ...]
    lane: int


@dataclass(frozen=True)
class _Row:
    """Labels next to the boxes of a node. `style`: unchanged, smaller, or removed."""

    operator: str
    module: str
    shapes: str
    style: str


def picture_of(kept: Kept, after: Graph) -> str:
    """The SVG: the kept share of each group in `after`, and the changes of each node."""
    return _Picture(kept, after).draw()


@dataclass(frozen=True)
class _Picture:
    """The graph before pruning and the remaining graph, perhaps after further steps."""

    kept: Kept
    after: Graph

    def draw(self) -> str:
        """The SVG document."""
        top = _MARGIN + _HEAD
        height = top + len(self.nodes) * _ROW + _MARGIN
        stripes = [
            box(_MARGIN - 4, top + row * _ROW, self.width - 2 * _MARGIN + 8, _ROW, _STRIPE)
            for row in range(0, len(self.nodes), 2)
        ]
        bars = [self._bar(span, top) for span in self.spans]
        labels = [part for row in range(len(self.nodes)) for part in self._label(row, top + row * _ROW)]
        return document(self.width, height, [*self._heading(), *stripes, *bars, *labels])

    @cached_property
    def nodes(self) -> list[Node]:
        """The nodes with channels of a group, in order."""
        return [node for node in self.kept.coupling.graph.nodes if _groups_of(self.kept, node)]

    @cached_property
    def rows(self) -> list[_Row]:
        """The labels of each node."""
        return [_row(self.after, node) for node in self.nodes]

    @cached_property
    def spans(self) -> list[_Span]:
        """Horizontal span of each group."""
        return _spans([_groups_of(self.kept, node) for node in self.nodes])

    @cached_property
    def columns(self) -> tuple[float, float, float, float]:
        """Column positions of operators, modules, shapes and counts."""
        lanes = 1 + max((span.lane for span in self.spans), default=0)
        operators = _MARGIN + lanes * _LANE + _GAP
        found, edges = [("operator", "module", "shape")], [float(operators)]
        found += [(row.operator, row.module, row.shapes) for row in self.rows]
        for column in zip(*found, strict=True):
            edges.append(edges[-1] + max(map(width_of, column)) + _GAP)
        return edges[0], edges[1], edges[2], edges[3]

    @cached_property
    def counts(self) -> dict[int, str]:
        """Numbers of remaining units, as text."""
        sizes = np.bincount(self.kept.coupling.groups).tolist()
        return {group: f"{left:,} of {sizes[group]:,}" for group, left in self.left.items()}

    @cached_property
    def left(self) -> dict[int, int]:
        """Number of remaining units of each group."""
        return _units_left(self.kept, self.after)

    @cached_property
    def begins(self) -> dict[int, list[int]]:
        """The groups that begin in a row."""
        found: dict[int, list[int]] = {}
        for span in self.spans:
            found.setdefault(span.rows[0], []).append(span.group)
        return found

    @cached_property
    def width(self) -> float:
        """Width in pixels."""
        counts = [", ".join(self.counts[g] for g in groups) for groups in self.begins.values()]
        widest = max(map(width_of, [*counts, "kept units"]))
        legend = _BOX + sum(width_of(words) + _GAP for words, _ in _LEGEND)
        return max(self.columns[3] + widest, _MARGIN + legend, *map(width_of, self._facts())) + _MARGIN

    def _facts(self) -> tuple[str, str]:
        """Summary lines of the chart."""
        before = self.kept.coupling.graph
        stay, total = sum(self.left.values()), len(self.kept.removed)
        units = f"{stay:,} of {total:,} units are kept, in {len(self.left):,} groups"
        share = 100 * self.after.macs / before.macs if before.macs else 100
        macs = f"{before.macs:,} → {self.after.macs:,} multiply-accumulates ({share:.0f} %)"
        return units, macs

    def _heading(self) -> list[str]:
        """The summary, the legend, and the heads of the columns."""
        y = _MARGIN + 38
        parts = [
            text(_MARGIN, _MARGIN + 8, self._facts()[0], style="title"),
            text(_MARGIN, _MARGIN + 23, self._facts()[1]),
            box(_MARGIN, y, _BOX, _BOX, "#ffffff", border=_QUIET),
            box(_MARGIN, y, _BOX / 2, _BOX, _QUIET),
        ]
        x: float = _MARGIN + _BOX + 6
        for words, style in _LEGEND:
            parts.append(text(x, y + 9, words, style=style))
            x += width_of(words) + _GAP
        heads = ("operator", "module", "shape", "kept units")
        bottom = _MARGIN + _HEAD - 6
        parts += [text(at, bottom, head, style="title") for at, head in zip(self.columns, heads, strict=True)]
        parts.append(line(_MARGIN - 4, bottom + 5, self.width - _MARGIN + 4, bottom + 5, _FRAME))
        return parts

    def _bar(self, span: _Span, top: float) -> str:
        """A thin line from the first row to the last, and a box in each row of the group."""
        x, tone = _MARGIN + span.lane * _LANE, colour(span.group)
        total = int((self.kept.coupling.groups == span.group).sum())
        first, last = (top + row * _ROW + (_ROW - _BOX) / 2 for row in (span.rows[0], span.rows[-1]))
        parts = [box(x + _BOX / 2 - 1, first, 2, last - first + _BOX, tone)]
        for row in span.rows:
            y = top + row * _ROW + (_ROW - _BOX) / 2
            parts.append(box(x, y, _BOX, _BOX, "#ffffff", border=tone))
            parts.append(box(x, y, _BOX * self.left[span.group] / total, _BOX, tone))
        return titled(f"group {span.group}: {self.left[span.group]} of {total} units are kept", parts)

    def _label(self, row: int, top: float) -> list[str]:
        """The labels of a row."""
        words, y = self.rows[row], top + _ROW - 5.5
        cells = zip(self.columns, (words.operator, words.module, words.shapes), strict=False)
        parts = [text(x, y, cell, style=words.style) for x, cell in cells]
        counts = ", ".join(self.counts[group] for group in self.begins.get(row, ()))
        return [*parts, text(self.columns[3], y, counts)] if counts else parts


def _row(after: Graph, node: Node) -> _Row:
    """Operator, module and shape, before and after."""
    value, made = node.outputs[0], after.producers
    shape = "x".join(map(str, value.type.shape))
    now = made[value.name].outputs[0].type.shape if value.name in made else None
    if now is None:
        changed, style = f"{shape} → gone", "gone"
    elif now == value.type.shape:
        changed, style = shape, "quiet"
    else:
        changed, style = f"{shape} → {'x'.join(map(str, now))}", ""
    module = node.source.module or f"%{value.name}"
    return _Row(node.op.name, shortened(module, _MODULE_LETTERS), changed, style)


def _values(kept: Kept, node: Node) -> list[Value]:
    """A node's results and constants."""
    return [*node.outputs, *(v for v in node.operands if kept.coupling.graph.is_constant(v))]


def _groups_of(kept: Kept, node: Node) -> tuple[int, ...]:
    """The groups on a node's results and constants."""
    coupling = kept.coupling
    found = [coupling.on_axis(axis) for value in _values(kept, node) for axis in coupling.axes(value)]
    units = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
    return tuple(np.unique(coupling.groups[units[units != STAYS]]).tolist())


def _units_left(kept: Kept, after: Graph) -> dict[int, int]:
    """Number of remaining units of each group.

    If a group is alone on a dimension that `after` still has, the size of that dimension is used, which is also
    correct after further steps; else the number kept in this step.
    """
    coupling, groups = kept.coupling, kept.coupling.groups
    left = np.bincount(groups, weights=~kept.removed).astype(int)
    known = {v.name: v for v in after.constants} | {v.name: v for n in after.nodes for v in n.outputs}
    for value in (v for node in coupling.graph.nodes for v in _values(kept, node) if v.name in known):
        for axis, size in zip(coupling.axes(value), known[value.name].type.shape, strict=False):
            units = coupling.on_axis(axis)
            present = np.unique(groups[units[units != STAYS]])
            if len(present) == 1 and (units != STAYS).all() and len(units) == (groups == present[0]).sum():
                left[present[0]] = size
    return dict(enumerate(left.tolist()))


def _spans(present: Sequence[tuple[int, ...]]) -> list[_Span]:
    """Assignment of lanes, first come first served; a lane is free again after the last row of its group."""
    rows: dict[int, list[int]] = {}
    for row, groups in enumerate(present):
        for group in groups:
            rows.setdefault(group, []).append(row)
    ends: list[int] = []
    spans = []
    for group, listed in sorted(rows.items(), key=lambda item: (item[1][0], item[0])):
        lane = next((i for i, end in enumerate(ends) if end < listed[0]), len(ends))
        ends[lane : lane + 1] = [listed[-1]]
        spans.append(_Span(group, tuple(listed), lane))
    return spans
