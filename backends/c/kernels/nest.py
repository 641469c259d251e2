"""Nested loops over several tensors of different strides, with as few loops as the strides allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan.layout import Layout, Shape

WRITTEN_OUT = 16
"""Iterations of an innermost loop of constant length up to which GCC unrolls it (max-completely-peel-times)."""

_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop: its index variable and its count."""

    index: str
    size: int


@dataclass(frozen=True, slots=True)
class Nest:
    """Loops from the outermost, and the index expression of each tensor inside them."""

    loops: tuple[Loop, ...]
    at: tuple[str, ...]
    sizes: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    depth: int = 1

    @property
    def inner(self) -> int:
        """Count of the innermost loop; 1 if there is none."""
        return self.sizes[-1] if self.sizes else 1

    @property
    def opening(self) -> str:
        """The lines that open the loops inside a function; a block if there is no loop."""
        lines = [
            f"{_INDENT * depth}for (int32_t {i.index} = 0; {i.index} < {i.size}; {i.index}++) {{"
            for depth, i in enumerate(self.loops, start=self.depth)
        ]
        return "\n".join(lines or [f"{_INDENT * self.depth}{{"])

    @property
    def closing(self) -> str:
        """The lines that close the loops."""
        return "\n".join(f"{_INDENT * depth}}}" for depth in range(self._last, self.depth - 1, -1))

    @property
    def indent(self) -> str:
        """White space before the lines inside the loops."""
        return _INDENT * (self._last + 1)

    @property
    def inside(self) -> int:
        """The depth of a nest inside this one."""
        return self._last + 1

    @property
    def _last(self) -> int:
        return self.depth + max(len(self.loops), 1) - 1


def nest(
    sizes: Sequence[int],
    *strides: Sequence[int],
    offsets: Sequence[int] = (),
    prefix: str = "i",
    depth: int = 1,
) -> Nest:
    """Loops over `sizes`; `strides` has one list per tensor (0: the tensor is repeated), `offsets` one number.
    `depth` is the number of blocks around them.

    Loops are in the memory order of the first tensor; neighbours that are contiguous in every tensor are merged.
    """
    starts = tuple(offsets) or (0,) * len(strides)
    dims = [d for d in range(len(sizes)) if sizes[d] > 1]
    dims.sort(key=lambda d: [-step[d] for step in strides])
    merged: list[tuple[int, list[int]]] = []
    for d in dims:
        steps = [step[d] for step in strides]
        if merged and all(
            outer == inner * sizes[d] for outer, inner in zip(merged[-1][1], steps, strict=True)
        ):
            merged[-1] = (merged[-1][0] * sizes[d], steps)
        else:
            merged.append((sizes[d], steps))
    loops = tuple(Loop(f"{prefix}{i}", size) for i, (size, _) in enumerate(merged))
    return Nest(
        loops,
        tuple(
            index(start, [(loop.index, m[1][t]) for loop, m in zip(loops, merged, strict=True)])
            for t, start in enumerate(starts)
        ),
        tuple(size for size, _ in merged),
        tuple(tuple(m[1][t] for m in merged) for t in range(len(strides))),
        depth,
    )


def plain_nest(sizes: Sequence[int], strides: Sequence[int], *, prefix: str = "i") -> Nest:
    """One loop for each size, in this order, over a tensor with these strides."""
    loops = tuple(Loop(f"{prefix}{i}", size) for i, size in enumerate(sizes))
    terms = [(loop.index, step) for loop, step in zip(loops, strides, strict=True)]
    return Nest(loops, (index(0, terms),), tuple(sizes), (tuple(strides),))


def index(start: int, terms: Sequence[tuple[str, int]]) -> str:
    """The C expression of start + sum of variable * stride."""
    words = [name if step == 1 else f"{name} * {step}" for name, step in terms if step]
    if start or not words:
        words.append(str(start))
    return " + ".join(words)


def broadcast_strides(shape: Shape, layout: Layout, result: Shape) -> tuple[int, ...]:
    """Strides of a value along the dimensions of a result to which it is broadcast."""
    own = layout.strides(shape)
    missing = len(result) - len(shape)
    return (0,) * missing + tuple(0 if n == 1 else step for n, step in zip(shape, own, strict=True))


def padded_strides(shape: Shape, strides: Shape, rank: int) -> list[int]:
    """Strides along the last of `rank` dimensions to which a shape is broadcast: 0 where it is repeated."""
    own = [0 if n == 1 else step for n, step in zip(shape, strides, strict=True)]
    return [*(0,) * (rank - len(own)), *own]


def written_out(*lengths: int) -> str:
    """The variant of a function whose innermost loops have these lengths."""
    return "written out" if max(lengths) <= WRITTEN_OUT else ""
