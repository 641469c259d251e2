"""Calibrated rounding of a weight matrix, column by column, against the layer's output error.

GPTQ (Frantar et al., ICLR 2023). For inputs x with H = sum x^T x, the error of a rounded column is spread over the
columns that are still to come, in the way that keeps x W^T nearest:

    e = (w_c - round(w_c)) / U[c, c],   w_d -= e U[c, d] for d > c,   U^T U = (H + damping * mean(diag H) * I)^-1

Blocks of columns are updated at once. The scales of a group are fitted to its weights as they are by then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...ir import Encoding, Graph, Value, run
from ...ir.ops.linear import Linear
from ..calibration.calibrate import Batch, check_samples
from ..errors import PassError
from ..progress_callback import Progress
from .groupwise import choose_scales, fitting_dtype

_BLOCK = 128


def quantize_by_gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None,
    damping: float = 0.01,
    observer: Literal["minmax", "mse"] = "mse",
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Encoding]:
    """Integers of `weight` [out, in] and their encoding, for inputs of `hessian` [in, in] = sum x^T x."""
    rows, inputs = weight.shape
    size = group_size or inputs
    dtype = fitting_dtype(weight.reshape(-1, size), bits, dtype)
    factor = _inverse_factor(hessian, damping)
    columns = weight.float().T.clone(
        memory_format=torch.contiguous_format
    )  # a column of the weight is a row here
    integers = torch.empty_like(columns)
    scales = torch.empty(inputs // size, rows)
    half = 1 << (bits - 1)
    block = size * max(1, _BLOCK // size)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = torch.empty(stop - start, rows)
        for column in range(start, stop):
            if column % size == 0:
                group = columns[column : column + size].T.contiguous()
                scales[column // size] = choose_scales(group, bits, observer, dtype)
            scale, row = scales[column // size], columns[column]
            integers[column] = (row / scale).round_().clamp_(-half, half - 1)
            error = (row - integers[column] * scale) / factor[column, column]
            columns[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    encoding = Encoding(scales.T.reshape(-1).to(dtype), bits=bits, axis=0, group_size=group_size)
    return integers.T.contiguous().to(encoding.container.torch), encoding


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper factor U of the damped inverse, as float32; inputs that are always zero count as uncorrelated."""
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += damping * mean if mean > 0 else 1.0
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except RuntimeError as err:
        fact = "gptq: the inputs of a layer are too large or too alike to be inverted"
        raise PassError(f"{fact}; raise `damping`, or round this layer to nearest") from err
    return factor.float()


def input_hessians(
    graph: Graph, weights: Collection[str], samples: Sequence[Batch], *, progress: Progress
) -> dict[str, Tensor]:
    """The sum of x^T x over samples, for the inputs x of all linear layers that read a weight, by its name."""
    read: dict[str, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear) and node.operand("weight").name in weights:
            read.setdefault(node.operand("x").name, []).append(node.operand("weight").name)
    hessians: dict[str, Tensor] = {}

    def observe(value: Value, x: Tensor) -> None:
        if value.name in read:
            rows = x.reshape(-1, x.shape[-1]).float()
            product = rows.T @ rows
            for name in read[value.name]:
                hessians[name] = hessians[name] + product if name in hessians else product

    check_samples(graph, samples)
    with torch.no_grad():
        for index, sample in enumerate(samples):
            for value, x in zip(graph.inputs, sample, strict=True):
                observe(value, x)
            run(graph, sample, observe=observe)
            progress("calibration", index + 1, len(samples))
    return hessians
