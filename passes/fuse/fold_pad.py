"""Folding of an explicit zero padding into the convolution after it, also of uneven padding.

conv{padding=p}(pad{padding=q}(x), w) = conv{padding=p + q}(x, w)
"""

from __future__ import annotations

from dataclasses import replace

from ...ir import Builder, Value
from ...ir.ops.conv import Conv
from ...ir.ops.pad import Pad
from ..pattern import Application, Match, Rule, Term, op


def _pad_then_conv(x: Term, w: Term, *rest: Term) -> Application:
    return op(Conv)(op(Pad)(x), w, *rest)


def _why_not(match: Match) -> str | None:
    pad, conv = _operators(match)
    if pad.mode != "constant" or pad.value != 0:
        return "the padding is not with zeros"
    if any(n < 0 for n in pad.padding):
        return "the padding cuts off"
    if any(pad.padding[: -len(conv.padding)]):
        return "the padding reaches batch or channels"
    return None


def _fold(builder: Builder, match: Match) -> Value:
    pad, conv = _operators(match)
    spatial = len(conv.padding)
    added = ((0,) * spatial + pad.padding)[-spatial:]
    folded = replace(conv, padding=tuple(p + q for p, q in zip(conv.padding, added, strict=True)))
    operands = (match.value("x"), match.value("w"), *match.rest("rest"))
    return builder.add(folded, *operands, name=match.root.output.name, source=match.root.source)


def _operators(match: Match) -> tuple[Pad, Conv]:
    pad, conv = (node.op for node in match.nodes)
    assert isinstance(pad, Pad) and isinstance(conv, Conv)
    return pad, conv


FOLD_PAD = Rule("fold_pad", _pad_then_conv, _why_not, _fold, "padded by the convolution itself")
