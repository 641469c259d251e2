"""Removal of the taps of a convolution that read only padding at every position of the result.

A small image has them at the edges of a kernel: of 3 taps over one element with a padding of 1 on both sides, only
the middle one reads it. The remaining kernel is cheaper, and its scales need not cover weights without effect.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir import Builder, Value
from ...ir.ops.conv import Conv
from ...ir.ops.spatial import pairs
from ..pattern import Application, Match, Rule, Term, op

Span = tuple[int, int]


def _conv(x: Term, w: Term, *rest: Term) -> Application:
    return op(Conv)(x, w, *rest)


def _spans(match: Match) -> tuple[Span, ...]:
    """Start and end of the kept taps in each spatial dimension: the first to the last that read an element."""
    conv, root = match.root.op, match.root
    assert isinstance(conv, Conv)
    x, w, y = match.value("x").type.shape, match.value("w").type.shape, root.output.type.shape
    spans = []
    for n, k, places, stride, dilation, (before, after) in zip(
        x[2:], w[2:], y[2:], conv.stride, conv.dilation, pairs(conv.padding), strict=True
    ):
        reading = [
            tap
            for tap in range(k)
            if any(0 <= place * stride + tap * dilation - before < n for place in range(places))
        ]
        first, end = (reading[0], reading[-1] + 1) if reading else (0, k)
        spans.append((min(first, before // dilation), max(end, k - after // dilation)))
    return tuple(spans)


def _why_not(match: Match) -> str | None:
    weight = match.value("w")
    if match.tensor(weight) is None or weight.type.is_quantized:
        return "the weights are not float constants"
    if any(type(n) is not int for n in (*match.value("x").type.shape, *match.root.output.type.shape)):
        return "calls choose the size of the image"
    if _spans(match) == tuple((0, k) for k in weight.type.shape[2:]):
        return "every tap reads an element somewhere"
    return None


def _trim(builder: Builder, match: Match) -> Value:
    conv, weight, spans = match.root.op, match.tensor(match.value("w")), _spans(match)
    assert isinstance(conv, Conv) and weight is not None
    kernel, padding = weight.shape[2:], list[int]()
    for k, dilation, (first, end), (before, after) in zip(
        kernel, conv.dilation, spans, pairs(conv.padding), strict=True
    ):
        padding += [before - first * dilation, after - (k - end) * dilation]
    for axis, (first, end) in enumerate(spans, start=2):
        weight = weight.narrow(axis, first, end - first)
    return builder.add(
        replace(conv, padding=tuple(padding)),
        match.value("x"),
        match.replace_constant(match.value("w"), weight.contiguous()),
        *match.rest("rest"),
        name=match.root.output.name,
        source=match.root.source,
    )


TRIM_TAPS = Rule("trim_taps", _conv, _why_not, _trim, "taps that read only padding are removed")
