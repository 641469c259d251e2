"""Zeros among the weights of a linear layer for a small change of its output on calibration data.

With the inputs x of the layer and H = sum x^T x:

    wanda       score |w_ij| |x_j|, compared within each output channel                    Sun et al., ICLR 2024
    sparsegpt   score (w_ij / U[j, j])^2 with U^T U = H^-1, compared within blocks of columns. The error of a removed
                weight is distributed over the remaining columns, as in GPTQ.
                                                                           Frantar and Alistarh, ICML 2023
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration.input_statistics import inverse_factor

_BLOCK = 128  # block of columns; a multiple of M for a pattern N:M
_DAMPING = 0.01


def mask_smallest(scores: Tensor, share: float) -> Tensor:
    """Mask without the smallest `share` of all elements; of equal ones the last are removed first."""
    return mask_smallest_of_rows(scores.flatten()[None], share).view(scores.shape)


def mask_smallest_of_rows(scores: Tensor, share: float) -> Tensor:
    """Mask [rows, columns] without the smallest `share` of each row."""
    kept = scores.shape[1] - round(share * scores.shape[1])
    order = scores.detach().abs().argsort(dim=1, stable=True, descending=True)
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, :kept], True)


def mask_pattern(scores: Tensor, kept: int, of: int) -> Tensor:
    """Mask that keeps the `kept` largest of every `of` consecutive elements along dimension 1 (N:M sparsity).

    The size of dimension 1 is a multiple of `of`.
    """
    moved = scores.detach().abs().movedim(1, -1)
    ranks = moved.reshape(-1, of).argsort(stable=True, dim=1, descending=True).argsort(1)
    return (ranks < kept).view(moved.shape).movedim(-1, 1)


def sparse_by_wanda(weight: Tensor, hessian: Tensor, share: float, kept_of: tuple[int, int] | None) -> Tensor:
    """`weight` [out, in] with zeros, for inputs of `hessian` [in, in]; the other weights are unchanged."""
    scores = weight.detach().abs() * hessian.diagonal().sqrt().to(weight.dtype)
    mask = mask_smallest_of_rows(scores, share) if kept_of is None else mask_pattern(scores, *kept_of)
    return torch.where(mask, weight, 0.0)


def sparse_by_sparsegpt(
    weight: Tensor, hessian: Tensor, share: float, kept_of: tuple[int, int] | None
) -> Tensor:
    """`weight` [out, in] with zeros, for inputs of `hessian` [in, in]; the other weights compensate for them."""
    rows, inputs = weight.shape
    factor = inverse_factor(hessian, _DAMPING)
    columns = weight.detach().float().T.clone(memory_format=torch.contiguous_format)
    size = _BLOCK if kept_of is None else kept_of[1] * max(1, _BLOCK // kept_of[1])
    for start in range(0, inputs, size):
        stop = min(start + size, inputs)
        errors = torch.empty(stop - start, rows)
        if kept_of is None:
            mask = mask_smallest(_scores(columns, factor, start, stop), share)
        for column in range(start, stop):
            if kept_of is not None and (column - start) % kept_of[1] == 0:
                scores = _scores(columns, factor, column, column + kept_of[1])
                masks = mask_pattern(scores.T, *kept_of).T
                mask = masks if column == start else torch.cat([mask, masks])
            error = torch.where(mask[column - start], 0.0, columns[column]) / factor[column, column]
            columns[column].masked_fill_(~mask[column - start], 0.0)
            columns[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return columns.T.contiguous().to(weight.dtype)


def _scores(columns: Tensor, factor: Tensor, start: int, stop: int) -> Tensor:
    return (columns[start:stop] / factor.diagonal()[start:stop, None]).square()
