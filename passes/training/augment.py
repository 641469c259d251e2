"""Random augmentation of samples: flips and shifts of images, shifts in time, noise, masked tokens.

Shifts gather elements; the border is repeated. Noise has a variance relative to that of its sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Value
from ...specs.options import Augmentation
from ..errors import PassError

_IMAGE_RANK = 4
_TIME_AXES = {2: 1, 3: 1, 4: 2}  # by rank: [n, t], [n, t, c], [n, c, t, f]


@dataclass(frozen=True)
class _Kind:
    """A kind of augmentation: whether it applies to a tensor, its effect, and sizes of the dimensions it moves."""

    option: str
    applies: Callable[[Tensor, Augmentation], bool]
    apply: Callable[[Tensor, Augmentation, torch.Generator], Tensor]
    needs: str  # what a tensor must be
    moved: Callable[[Tensor, Augmentation], tuple[int, ...]] = lambda x, options: ()


def augment(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments each sample of a tensor independently; tensors of another kind are returned unchanged."""
    for kind in _chosen(options):
        if kind.applies(x, options):
            x = kind.apply(x, options, generator)
    return x


def check_augmentation(
    options: Augmentation, inputs: Sequence[Value], samples: Sequence[Tensor], labels: Tensor | None
) -> None:
    """PassError if an augmentation applies to no input, or moves positions that the labels do not follow."""
    names = [value.name for value in inputs]
    if unknown := [name for name in options.inputs if name not in names]:
        raise PassError(f"augment.inputs: no input {unknown[0]!r}; there are {', '.join(names)}")
    chosen = [(name, x) for name, x in zip(names, samples, strict=True) if name in (options.inputs or names)]
    for kind in _chosen(options):
        fitting = [(name, x) for name, x in chosen if kind.applies(x, options)]
        if not fitting:
            shapes = ", ".join(f"{name} of {_text(x)}" for name, x in chosen)
            raise PassError(f"augment.{kind.option}: needs {kind.needs}; there is {shapes}")
        if kind.option == "mask" and len(fitting) > 1 and not options.inputs:
            raise PassError(
                f"augment.mask: {' and '.join(name for name, _ in fitting)} are integers; name the tokens, "
                f"`inputs: [{fitting[0][0]}]`"
            )
        for name, x in fitting:
            if labels is not None and _follows(labels, kind.moved(x, options)):
                raise PassError(
                    f"augment.{kind.option}: moves positions of {name} {_text(x)}, which labels of "
                    f"{_text(labels)} for each position do not follow"
                )


def _follows(labels: Tensor, moved: tuple[int, ...]) -> bool:
    """True if labels have dimensions of these sizes, one after the other."""
    sizes = tuple(labels.shape[1:])
    starts = range(len(sizes) - len(moved) + 1)
    return bool(moved) and any(sizes[at : at + len(moved)] == moved for at in starts)


def _flip_and_shift(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    count, _, height, width = x.shape
    shifts = torch.randint(-options.shift, options.shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool() & options.flip
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(count).view(-1, 1, 1)
    return x.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shift_in_time(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    axis = _time_axis(x, options)
    assert axis is not None
    count, steps = len(x), x.shape[axis]
    shifts = torch.randint(-options.time_shift, options.time_shift + 1, (count, 1), generator=generator)
    order = (torch.arange(steps) + shifts).clamp(0, steps - 1)
    return x.movedim(axis, 1)[torch.arange(count)[:, None], order].movedim(1, axis)


def _add_noise(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    assert options.noise is not None
    deviation = x.flatten(1).std(1, correction=0).view(-1, *(1,) * (x.ndim - 1))
    noise = torch.randn(x.shape, generator=generator).to(x.dtype)
    amplitude: float = 10 ** (-options.noise / 20)
    return x + amplitude * deviation * noise


def _mask(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    assert options.mask is not None and options.mask_id is not None
    chosen = torch.rand(x.shape, generator=generator) < options.mask
    return torch.where(chosen, torch.full_like(x, options.mask_id), x)


def _time_steps(x: Tensor, options: Augmentation) -> tuple[int, ...]:
    axis = _time_axis(x, options)
    assert axis is not None
    return (x.shape[axis],)


def _time_axis(x: Tensor, options: Augmentation) -> int | None:
    """Dimension of the time steps; None if the tensor has none."""
    axis = _TIME_AXES.get(x.ndim) if options.time_axis is None else options.time_axis
    if axis is None or not -x.ndim < axis < x.ndim or axis == 0:
        return None
    return axis % x.ndim


_IMAGE = _Kind(
    "shift",
    lambda x, _: x.ndim == _IMAGE_RANK,
    _flip_and_shift,
    "an image [n, c, h, w]",
    lambda x, _: tuple(x.shape[2:]),
)
_TIME = _Kind(
    "time_shift",
    lambda x, options: _time_axis(x, options) is not None,
    _shift_in_time,
    "an input with a dimension of time, `time_axis`",
    _time_steps,
)
_NOISE = _Kind(
    "noise", lambda x, _: x.is_floating_point() and x.ndim > 1, _add_noise, "an input of real numbers"
)
_TOKENS = _Kind(
    "mask",
    lambda x, _: not x.is_floating_point() and x.dtype is not torch.bool and x.ndim > 1,
    _mask,
    "an input of integers, such as tokens",
)


def _chosen(options: Augmentation) -> list[_Kind]:
    """The kinds that the options ask for, in the order in which they apply."""
    asked = (
        (_IMAGE, options.flip or options.shift > 0),
        (_TIME, options.time_shift > 0),
        (_NOISE, options.noise is not None),
        (_TOKENS, options.mask is not None),
    )
    return [kind for kind, is_asked in asked if is_asked]


def _text(x: Tensor) -> str:
    return "x".join(["n", *map(str, x.shape[1:])])
