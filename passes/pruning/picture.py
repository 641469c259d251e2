"""A picture of the groups over the graph: one self-contained SVG, nodes in order, a colour for each group.

A row is a node; each group that lies on its result or its weights has a column, in which consecutive rows are joined,
so that a residual stream is one long bar. Beside it stand the channels before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ...ir import Graph, Node
from ...ir.coupling import STAYS, Kept

_ROW, _LANE, _TEXT, _MARGIN, _HEAD = 18, 14, 430, 12, 54
_GOLDEN = 137.508  # degrees: neighbouring groups get distant hues


@dataclass(frozen=True)
class _Span:
    """A group in the rows where it lies, drawn in a lane that it has to itself there."""

    group: int
    rows: tuple[int, ...]
    lane: int


def picture_of(kept: Kept, after: Graph) -> str:
    """The SVG: how much of each group stays, and what became of each node."""
    nodes = [n for n in kept.coupling.graph.nodes if _groups_of(kept, n)]
    spans = _spans([_groups_of(kept, node) for node in nodes])
    lanes = 1 + max((span.lane for span in spans), default=0)
    text_at = 2 * _MARGIN + lanes * _LANE
    width = 2 * _MARGIN + _TEXT + lanes * _LANE
    height = 2 * _MARGIN + _HEAD + len(nodes) * _ROW
    body = [_heading(kept, after)]
    body += [_bar(kept, span) for span in spans]
    body += [_label(after, node, row, text_at) for row, node in enumerate(nodes)]
    style = "text{font:11px sans-serif;fill:#222}.gone{fill:#a33}.quiet{fill:#777}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<style>{style}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _groups_of(kept: Kept, node: Node) -> tuple[int, ...]:
    """The groups on a node's results and constants."""
    coupling = kept.coupling
    values = [*node.outputs, *(v for v in node.operands if coupling.graph.is_constant(v))]
    found = [coupling.on_axis(axis) for value in values for axis in coupling.axes(value)]
    units = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
    return tuple(np.unique(coupling.groups[units[units != STAYS]]).tolist())


def _spans(present: Sequence[tuple[int, ...]]) -> list[_Span]:
    """Lanes, first come first served; a lane is free again when its group has ended."""
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


def _bar(kept: Kept, span: _Span) -> str:
    """A thin line from the first row to the last, a box in each row where the group lies, filled as far as it stays."""
    units = kept.coupling.groups == span.group
    total, left = int(units.sum()), int((units & ~kept.removed).sum())
    x, colour = _MARGIN + span.lane * _LANE, f"hsl({span.group * _GOLDEN % 360:.0f},55%,55%)"
    top, bottom = (_HEAD + _MARGIN + row * _ROW for row in (span.rows[0], span.rows[-1]))
    parts = [f'<rect x="{x + 4}" y="{top}" width="2" height="{bottom - top + _ROW - 4}" fill="{colour}"/>']
    filled = 10 * left / total
    for row in span.rows:
        y = _HEAD + _MARGIN + row * _ROW
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="{_ROW - 4}" fill="#fff" stroke="{colour}"/>')
        parts.append(f'<rect x="{x}" y="{y}" width="{filled:.1f}" height="{_ROW - 4}" fill="{colour}"/>')
    return f"<g><title>group {span.group}: {left} of {total} units stay</title>{''.join(parts)}</g>"


def _label(after: Graph, node: Node, row: int, x: int) -> str:
    """Operator, module and shape, before and after."""
    value, made = node.outputs[0], after.producers
    shape = "x".join(map(str, value.type.shape))
    now = made[value.name].outputs[0].type.shape if value.name in made else None
    changed = "" if now == value.type.shape else f" → {'gone' if now is None else 'x'.join(map(str, now))}"
    text = escape(f"{node.op.name}  {node.source.module or value.name}  {shape}{changed}")
    kind = ' class="gone"' if now is None else "" if changed else ' class="quiet"'
    return f'<text x="{x}" y="{_HEAD + _MARGIN + row * _ROW + 11}"{kind}>{text}</text>'


def _heading(kept: Kept, after: Graph) -> str:
    before = kept.coupling.graph
    stay, groups = int((~kept.removed).sum()), int(kept.coupling.groups.max()) + 1
    units = f"{stay:,} of {len(kept.removed):,} units stay in {groups} groups"
    costs = f"{before.macs:,} → {after.macs:,} multiply-accumulates"
    return f'<text x="{_MARGIN}" y="{_MARGIN + 12}">{units}; {costs}</text>'
