"""Comparison of results. There are no default tolerances: a test states its tolerance and the reason."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Tensor | Sequence[Tensor]


def assert_exact(actual: Tensors, expected: Tensors) -> None:
    """Fails unless both are the same tensors: number, shapes, element types, values; NaN equals NaN."""
    for index, (a, b) in enumerate(_paired(actual, expected)):
        if a.dtype != b.dtype:
            raise AssertionError(f"result {index} is {a.dtype}, expected {b.dtype}")
        _check(index, a, b, torch.zeros((), dtype=torch.float64))


def assert_equivalent(actual: Tensors, expected: Tensors, *, atol: float, rtol: float) -> None:
    """Fails unless |actual - expected| <= atol + rtol * largest |expected| for every element of every result.

    The bound of a result is one number, from its largest element: rounding errors of a sum do not shrink with the
    sum. NaN equals NaN, and infinities equal themselves.
    """
    for index, (a, b) in enumerate(_paired(actual, expected)):
        finite = b.double()[b.isfinite()] if b.is_floating_point() else b.double().flatten()
        largest = finite.abs().max() if finite.numel() else torch.zeros((), dtype=torch.float64)
        _check(index, a, b, atol + rtol * largest)


def _paired(actual: Tensors, expected: Tensors) -> list[tuple[Tensor, Tensor]]:
    a, b = ([t] if isinstance(t, Tensor) else list(t) for t in (actual, expected))
    if len(a) != len(b):
        raise AssertionError(f"{len(a)} results, expected {len(b)}")
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            raise AssertionError(f"result {index} has shape {tuple(x.shape)}, expected {tuple(y.shape)}")
    return list(zip(a, b, strict=True))


def _check(index: int, actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    if actual.is_complex() or expected.is_complex():
        actual, expected = torch.view_as_real(actual), torch.view_as_real(expected)
    a, b = actual.detach().double(), expected.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs()).nan_to_num(float("inf"), float("inf"))
    if error.numel() and float(error.max()) > float(bound):
        at = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        count = int((error > bound).sum())
        raise AssertionError(
            f"result {index} differs in {count} of {error.numel()} elements, most at {at}: "
            f"{a[at].item():.9g}, expected {b[at].item():.9g}; the bound is {float(bound):.3g}"
        )
