"""Weights that become zero for a small change of the loss, or of the output of a linear layer, on calibration data.

    taylor      score sum over batches of (w dL/dw)^2                                      Molchanov et al., CVPR 2019

With the inputs x of a linear layer and H = sum x^T x:

    wanda       score |w_ij| |x_j|, compared within each output channel                    Sun et al., ICLR 2024
    sparsegpt   score (w_ij / U[j, j])^2 with U^T U = H^-1, compared within groups of columns. The error of a removed
                weight is distributed over the remaining columns, as in GPTQ.
                                                                           Frantar and Alistarh, ICML 2023

The score of a block of consecutive weights along the input channels is the sum of their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...ir import Graph, run
from ..base import Context
from ..calibration.input_statistics import inverse_factor
from ..training.losses import loss_of_calibration
from .blocks import SINGLE, Blocks

_COLUMNS = 128  # columns whose masks are chosen together, rounded to whole blocks or groups of M
_DAMPING = 0.01


def mask_smallest(scores: Tensor, share: float) -> Tensor:
    """Mask without the smallest `share` of all elements; of equal ones the last are removed first."""
    return mask_smallest_of_rows(scores.flatten()[None], share).view(scores.shape)


def mask_smallest_of_all(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks without the smallest `share` of the elements of all tensors together."""
    joined = mask_smallest(torch.cat([tensor.flatten() for tensor in scores.values()]), share)
    parts = torch.split(joined, [tensor.numel() for tensor in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def mask_smallest_of_rows(scores: Tensor, share: float) -> Tensor:
    """Mask [rows, columns] without the smallest `share` of each row."""
    kept = scores.shape[1] - round(share * scores.shape[1])
    if kept == 0 or kept == scores.shape[1]:
        return torch.full(scores.shape, kept > 0)
    magnitudes = scores.detach().abs()
    mask = magnitudes > magnitudes.kthvalue(scores.shape[1] - kept, dim=1, keepdim=True).values
    if bool((mask.sum(1) == kept).all()):
        return mask
    order = magnitudes.argsort(dim=1, stable=True, descending=True)  # equal elements at the threshold
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, :kept], True)


def mask_pattern(scores: Tensor, kept: int, of: int) -> Tensor:
    """Mask that keeps the `kept` largest of every `of` consecutive elements along dimension 1 (N:M sparsity).

    The size of dimension 1 is a multiple of `of`.
    """
    moved = scores.detach().abs().movedim(1, -1)
    ranks = moved.reshape(-1, of).argsort(stable=True, dim=1, descending=True).argsort(1)
    return (ranks < kept).view(moved.shape).movedim(-1, 1)


def taylor_scores(graph: Graph, names: Sequence[str], context: Context) -> dict[str, Tensor]:
    """The score of each element of these weights, by the loss of `loss_of_calibration`."""
    scores = {name: torch.zeros_like(graph.params[name]) for name in names}
    labels: Sequence[Tensor | None] = context.labels or [None] * len(context.calibration)
    for done, (inputs, right) in enumerate(zip(context.calibration, labels, strict=True)):
        weights = {name: graph.params[name].detach().clone().requires_grad_() for name in names}
        loss = loss_of_calibration(run(graph, inputs, params=weights), right)
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            scores[name] += (weight.detach() * gradient).square()
        context.progress("scoring weights", done + 1, len(context.calibration))
    return scores


def sparse_by_wanda(
    weight: Tensor, hessian: Tensor, share: float, kept_of: tuple[int, int] | None, *, blocks: Blocks = SINGLE
) -> Tensor:
    """`weight` [out, in] with zeros, for inputs of `hessian` [in, in]; the other weights are unchanged."""
    scores = weight.detach().abs() * hessian.diagonal().sqrt().to(weight.dtype)
    if kept_of is not None:
        return torch.where(mask_pattern(scores, *kept_of), weight, 0.0)
    mask = mask_smallest_of_rows(blocks.scores(scores), share)
    return torch.where(blocks.mask(mask, weight.shape[1]), weight, 0.0)


def sparse_by_sparsegpt(
    weight: Tensor, hessian: Tensor, share: float, kept_of: tuple[int, int] | None, *, blocks: Blocks = SINGLE
) -> Tensor:
    """`weight` [out, in] with zeros, for inputs of `hessian` [in, in]; the other weights compensate for them."""
    if blocks.order is not None:
        order, plain = blocks.order, Blocks(blocks.size)
        ordered = sparse_by_sparsegpt(
            weight[:, order], hessian[order][:, order], share, kept_of, blocks=plain
        )
        return ordered[:, order.argsort()].contiguous()
    rows, inputs = weight.shape
    factor = inverse_factor(hessian, _DAMPING)
    columns = weight.detach().float().T.clone(memory_format=torch.contiguous_format)
    together = blocks.size if kept_of is None else kept_of[1]
    size = together * max(1, _COLUMNS // together)
    for start in range(0, inputs, size):
        stop = min(start + size, inputs)
        errors = torch.empty(stop - start, rows)
        if kept_of is None:
            scores = blocks.scores(_scores(columns, factor, start, stop).T)
            mask = blocks.mask(mask_smallest(scores, share), stop - start).T
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
