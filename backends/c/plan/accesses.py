"""Estimated loads and stores of a step, for the wait states of their memory.

Kernels do not report them; they are estimated from elements and multiply-accumulates. A layer stores each element of
its result, and loads an activation once for several products: once for 4 with kernels that keep blocks in registers,
once for 2 in portable C. If it gathers windows in working memory, it loads the operand and stores the window in pairs,
and loads the products' activations from there. Other steps load and store each element, sums and pools with DSP
instructions words. Counted on a simulated core, the accesses of single layers are 0.5 to 2 times the estimate
(tests/backends/c/test_accesses.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .program import Step, Stored

WORD = 4
"""Bytes of the widest access that the estimate counts as one access."""
_PRODUCTS_OF_A_LOAD = {"dsp": 4, "blocked": 4}
_PRODUCTS_OF_A_PORTABLE_LOAD = 2
_GATHERED_OF_A_LOAD = 2
_IN_WORDS = frozenset({"dsp/sum.c.j2", "dsp/max_pool.c.j2", "dsp/avg_pool.c.j2"})


@dataclass(frozen=True, slots=True)
class Accesses:
    """Loads of each operand, stores of each result, and both of the working memory."""

    operands: tuple[int, ...]
    results: tuple[int, ...]
    working: int


def accesses_of(step: Step, left_out: Collection[int] = ()) -> Accesses:
    """The accesses of a step, without its calls in `left_out`; accesses to constants are not counted."""
    if step.offer.views is not None or all(number in left_out for number in range(len(step.calls))):
        return Accesses((0,) * len(step.operands), (0,) * len(step.results), 0)
    template = step.offer.templates[0] if step.offer.templates else ""
    family, in_words = template.partition("/")[0], template in _IN_WORDS
    loads = [0 if stored is None else _accesses(stored, in_words=in_words) for stored in step.operands]
    stores = tuple(_accesses(stored, in_words=in_words) for stored in step.results)
    products = step.macs // _PRODUCTS_OF_A_LOAD.get(family, _PRODUCTS_OF_A_PORTABLE_LOAD)
    working = step.offer.working_bytes // WORD
    if step.offer.working_bytes:
        gathered = _gathered(step) // _GATHERED_OF_A_LOAD
        working += products + gathered
        loads[:1] = [gathered or load for load in loads[:1]]
    else:
        loads[:1] = [max(load, step.macs if _is_depthwise(step) else products) for load in loads[:1]]
    return Accesses(tuple(loads), stores, working)


def _accesses(stored: Stored, *, in_words: bool) -> int:
    return -(-stored.bytes // WORD) if in_words else stored.elements


def _gathered(step: Step) -> int:
    """Elements of all windows of a layer; 0 for other steps."""
    weight = None if step.node is None else step.node.optional("weight")
    if weight is None or step.operands[0] is None:
        return 0
    if _is_depthwise(step):
        return _GATHERED_OF_A_LOAD * step.operands[0].elements
    return step.macs // weight.type.shape[0]


def _is_depthwise(step: Step) -> bool:
    """True if each channel is convolved separately."""
    weight = None if step.node is None else step.node.optional("weight")
    return weight is not None and weight.type.rank > 2 and weight.type.shape[1] == 1
