"""Offers for steps that compute some rows at a time: a kernel for each form of their calls, combined in one offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ....ir import Graph
from ..kernels.base import Offer, Site, Work
from ..kernels.costs import CoreCosts
from ..target import Machine
from .coding import with_coded_weights
from .program import RowForm
from .row_steps import Overhang, RowStep, lower_layout
from .select import offers


@dataclass(frozen=True, eq=False)
class RowOffer:
    """The forms of the calls of a step, and one offer for all of them: its work is that of an average call."""

    forms: tuple[RowForm, ...]
    offer: Offer


class RowOffers:
    """The offers for steps of a graph on a machine."""

    def __init__(self, graph: Graph, machine: Machine, costs: CoreCosts) -> None:
        self._graph, self._machine, self._costs = graph, machine, costs

    def of(self, step: RowStep, rows: int, scratch_bytes: int | None = None) -> RowOffer | None:
        """The fastest offers for calls on this many rows, with the kernel of the whole step if it supports them.

        With `scratch_bytes` they need no more working memory than that or, if impossible, the least. The calls at an
        edge use the kernel of most calls if possible, so that they read the same constants. None if no kernel
        supports the calls, or if a call has only padding under its windows.
        """
        found: dict[Overhang, Offer] = {}
        kernel, forms = step.step.offer.kernel, step.overhangs(rows)
        for _, overhang in sorted(forms, key=lambda form: -form[0]):
            best = self._best(step, rows, overhang, kernel, scratch_bytes)
            if best is None:
                return None
            found[overhang] = best
            kernel = best.kernel
        row_forms = tuple(
            RowForm(count, len(found[overhang].templates), _at_first(overhang)) for count, overhang in forms
        )
        return RowOffer(row_forms, _joined([(count, found[overhang]) for count, overhang in forms]))

    def _best(
        self, step: RowStep, rows: int, overhang: Overhang, kernel: str, scratch_bytes: int | None
    ) -> Offer | None:
        spans = [
            None if reading is None else reading.span - sum(outside)
            for reading, outside in zip(step.readings(rows), overhang, strict=True)
        ]
        if any(span is not None and span < 1 for span in spans):
            return None
        wanted = tuple(
            None if stored is None else stored.layout if span is None else lower_layout(stored, span)
            for stored, span in zip(step.step.operands, spans, strict=True)
        )
        node = step.lower(rows, overhang)
        at_hand = tuple(
            None if value is None or self._graph.is_constant(value) else layout
            for value, layout in zip(node.inputs, wanted, strict=True)
        )
        made, _ = offers(Site(node, self._graph, at_hand, self._machine, step.height // rows))
        writes = (lower_layout(step.result, rows),)
        fitting = [one for one in made if (one.reads, one.writes) == (wanted, writes) and one.views is None]
        alike = [one for one in fitting if one.kernel == kernel] or fitting
        if not alike:
            return None
        least = min(one.scratch_bytes for one in alike)
        most = max(least, max(one.scratch_bytes for one in alike) if scratch_bytes is None else scratch_bytes)
        small = [one for one in alike if one.scratch_bytes <= most]
        best = min(small, key=lambda one: self._costs.cost(one, step.step.form).time)
        best = replace(best, build=cache(best.build))
        return with_coded_weights(best) if step.step.offer.coded else best


def _at_first(overhang: Overhang) -> frozenset[int]:
    return frozenset(index for index, (before, _) in enumerate(overhang) if before)


def _joined(parts: Sequence[tuple[int, Offer]]) -> Offer:
    """One offer for several kinds of calls with their numbers; its constants are those of the kind with the most
    calls.
    """
    total = sum(count for count, _ in parts)
    each = [one for _, one in parts]
    work = Work(
        sum(count * one.work.products for count, one in parts) / total,
        sum(count * one.work.loops for count, one in parts) / total,
        sum(count * one.work.results for count, one in parts) / total,
        sum(one.work.code_bytes for one in each),
    )
    _, main = max(parts, key=lambda part: part[0])
    return replace(
        main,
        work=work,
        build=lambda: tuple(call for one in each for call in one.build()),
        scratch_bytes=max(one.scratch_bytes for one in each),
        overwrites=tuple(index for index in main.overwrites if all(index in one.overwrites for one in each)),
        coded=tuple({c.data.tobytes(): c for one in each for c in one.coded}.values()),
    )
