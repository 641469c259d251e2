"""The Gauss-Newton block of every layer: trace, largest eigenvalue, norm; and the scores made from them.

    G_i = E_x sum_j r_j r_j^T,   r_j the gradient of <l_j, z> in the layer's weights, F = L L^T with columns l_j

so that the trace is a mean of squared gradient norms, one backward for each column is shared by all layers, and the
Gram matrix of all r_j has the eigenvalues of G_i: no probes, and no variance except that of the samples. If F has too
many columns, the first are exact and random vectors replace the others (Hutchinson's estimator in output space, one
backward each), with enough vectors to reduce the confidence interval of every trace below a tolerance.

    hawq       largest eigenvalue / n * ||dW||^2       Dong et al., ICCV 2019: the first two factors order the layers
    hawq_v2    trace / n * ||dW||^2                    Dong et al., NeurIPS 2020
    fisher     1/2 sum_k G_kk dW_k^2                   only the diagonal of the block
    norm       ||dW||^2                                no curvature, for comparison
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from ..errors import PassError
from ..workers import Moments
from .blocks import Block
from .gradients import Backward, WeightGradients
from .piecewise import is_piecewise_linear
from .sensitivity_table import Curvature, Score
from .study import Stack, Study

_LEADING_COLUMNS = 8
_PROBES_A_ROUND, _MOST_PROBES = 8, 512
_CHUNK_ELEMENTS = 1 << 25  # elements of gradients in one backward
_GRAM_BYTES = 1 << 31

Figures = Callable[[Mapping[str, WeightGradients], Block], Tensor]
"""Figures [figures, columns, samples] of one block, from the gradients of some vectors."""


@dataclass(frozen=True)
class Precision:
    """Target precision of estimated traces, if F has more columns than `exact_columns`.

    The interval of `confidence` around every trace has at most `tolerance` of it on either side; `seed` is that of the
    random vectors.
    """

    exact_columns: int = 64
    tolerance: float = 0.05
    confidence: float = 0.95
    seed: int = 0


DEFAULT_PRECISION = Precision()


@dataclass(frozen=True)
class Traces:
    """Trace of each block and its standard error; `half_width` is the largest relative one over all blocks, for
    `probes` probes.
    """

    mean: Tensor
    error: Tensor
    columns: int
    probes: int
    half_width: float


def measure_traces(study: Study, precision: Precision) -> Traces:
    """The trace of each block; exact if the factor of F has few columns."""
    rank, positions = _rank(study)
    columns = rank if rank <= precision.exact_columns else 0 if positions > 1 else _LEADING_COLUMNS
    exact = _over_columns(study, columns, _squared_norms)
    if columns == rank:
        total = Moments.of(exact)
        return Traces(total.mean, total.error, columns, 0, 0.0)
    drawn: list[Tensor] = []
    half_width = float("inf")
    while half_width > precision.tolerance and len(drawn) < _MOST_PROBES:
        drawn += _probes(study, columns, len(drawn), precision.seed)
        half_width = _half_width(exact, drawn, precision.confidence)
    total = Moments.of(exact + torch.stack(drawn).mean(0))
    return Traces(total.mean, total.error, columns, len(drawn), half_width)


def _half_width(exact: Tensor, drawn: Sequence[Tensor], confidence: float) -> float:
    """Half width of the widest confidence interval over probes (Student's t), relative to the trace."""
    means = torch.stack([d.mean(-1) for d in drawn])
    trace = (exact.mean(-1) + means.mean(0)).clamp(min=torch.finfo(torch.float64).tiny)
    quantile = float(stdtrit(len(drawn) - 1, (1 + confidence) / 2))
    return float((quantile * means.std(0) / len(drawn) ** 0.5 / trace).max())


def hawq_v2(study: Study, bits: Sequence[int], precision: Precision) -> tuple[list[Score], list[Curvature]]:
    """Mean of the block's diagonal times the squared error."""
    found = measure_traces(study, precision)
    curvatures = [
        _curvature(study, block, float(trace), float(error), None)
        for block, trace, error in zip(study.blocks, found.mean, found.error, strict=True)
    ]
    factors = [(c.trace / c.elements, c.trace_error / c.elements) for c in curvatures]
    return _scaled_norms(study, bits, factors), curvatures


def hawq(study: Study, bits: Sequence[int]) -> tuple[list[Score], list[Curvature]]:
    """Largest eigenvalue over the number of weights, times the squared error."""
    curvatures, factors = [], []
    for block, spectrum in zip(study.blocks, _spectra(study), strict=True):
        curvatures.append(_curvature(study, block, spectrum.trace, spectrum.trace_error, spectrum))
        factors.append((spectrum.largest / block.elements, spectrum.largest_error / block.elements))
    return _scaled_norms(study, bits, factors), curvatures


def norm(study: Study, bits: Sequence[int]) -> list[Score]:
    """The squared error without curvature."""
    return _scaled_norms(study, bits, [(1.0, 0.0)] * len(study.blocks))


def fisher(study: Study, bits: Sequence[int], precision: Precision) -> list[Score]:
    """The quadratic form of the block's diagonal along each error."""
    rank, _ = _rank(study)
    if rank > precision.exact_columns:
        raise PassError(f"method fisher needs all {rank} columns of F; use gauss_newton, which needs none")
    errors = [[b.weight_errors(study.graph, width, study.rounding) for width in bits] for b in study.blocks]
    by_layer = {block.layer: e for block, e in zip(study.blocks, errors, strict=True)}

    def quadratics(gradients: Mapping[str, WeightGradients], block: Block) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name in block.sites:
            squares = torch.stack([e[name].flatten().square() for e in by_layer[block.layer]])
            total = total + (gradients[name].matrices().square() @ squares.T).permute(2, 1, 0).double()
        return total / 2

    total = Moments.of(_over_columns(study, rank, quadratics))
    pairs = [(block.layer, width) for block in study.blocks for width in bits]
    figures = zip(pairs, total.mean.tolist(), total.error.tolist(), strict=True)
    return [Score(layer, "weight", width, loss, error) for (layer, width), loss, error in figures]


def _scaled_norms(study: Study, bits: Sequence[int], factors: Sequence[tuple[float, float]]) -> list[Score]:
    scores = []
    for block, (factor, error) in zip(study.blocks, factors, strict=True):
        for width in bits:
            errors = block.weight_errors(study.graph, width, study.rounding)
            square = sum(float(e.double().square().sum()) for e in errors.values())
            scores.append(Score(block.layer, "weight", width, factor * square, error * square))
    return scores


def _curvature(
    study: Study, block: Block, trace: float, error: float, spectrum: _Spectrum | None
) -> Curvature:
    return Curvature(
        block.layer,
        block.elements,
        trace,
        error,
        None if spectrum is None else spectrum.largest,
        None if spectrum is None else spectrum.frobenius,
        is_piecewise_linear(study.graph, block),
    )


def _rank(study: Study) -> tuple[int, int]:
    """Columns of the complete factor of F for one sample, and number of scored positions."""
    outputs = [torch.zeros(v.type.shape, dtype=v.type.dtype.torch) for v in study.graph.outputs]
    z = study.loss.read(outputs, 1)
    return study.loss.rank(z), z.shape[1]


def _squared_norms(gradients: Mapping[str, WeightGradients], block: Block) -> Tensor:
    return torch.stack([gradients[name].squared_norms() for name in block.sites]).sum(0)[None]


def _over_columns(study: Study, columns: int, figures: Figures) -> Tensor:
    """Figures of all blocks, summed over the first columns of F: [figures, samples], samples in order."""

    def vectors(z: Tensor, stack: Stack) -> Tensor:
        return study.loss.columns(z, columns)

    return _figures(study, "columns", vectors, figures).sum(1)


def _probes(study: Study, columns: int, first: int, seed: int) -> tuple[Tensor, ...]:
    """Squared norms, [blocks, samples], for each of some random vectors, which depend only on the sample's index."""
    drawn = range(first, first + _PROBES_A_ROUND)

    def vectors(z: Tensor, stack: Stack) -> Tensor:
        places = range(stack.first, stack.first + stack.count)
        signs = [torch.stack([_signs(z.shape[1:], (seed, i, place)) for place in places]) for i in drawn]
        return study.loss.probes(z, torch.stack(signs), skipped=columns)

    return _figures(study, f"probes up to {drawn.stop}", vectors, _squared_norms).unbind(1)


def _signs(shape: Sequence[int], key: Sequence[int]) -> Tensor:
    drawn = np.random.default_rng(key).integers(0, 2, size=tuple(shape))
    return torch.from_numpy(2.0 * drawn - 1.0)


def _figures(
    study: Study, label: str, vectors: Callable[[Tensor, Stack], Tensor], figures: Figures
) -> Tensor:
    """Figures of all blocks for each vector and sample, [figures, vectors, samples]."""

    def work(shard: range) -> Tensor:
        return torch.cat([of_stack(stack) for stack in study.stacks(shard)], 2)

    def of_stack(stack: Stack) -> Tensor:
        sent = _sent(study, stack, lambda z: vectors(z, stack))
        return torch.cat(
            [torch.cat([figures(gradients, block) for block in study.blocks]) for gradients in sent], 1
        )

    return torch.cat(study.over_shards(label, work), 2)


def _sent(
    study: Study, stack: Stack, vectors: Callable[[Tensor], Tensor]
) -> Iterator[Mapping[str, WeightGradients]]:
    """The gradients of a stack for some vectors, as many at once as fit into memory."""
    backward = Backward(stack.graph, study.blocks, stack.inputs, stack.count)
    z = study.loss.read(backward.outputs, stack.count)
    sent = vectors(z.detach())
    elements = stack.count * sum(n.output.type.numel for block in study.blocks for n in block.nodes)
    chunk = max(_CHUNK_ELEMENTS // elements, 1)
    for start in range(0, max(len(sent), 1), chunk):
        yield backward.send(z, sent[start : start + chunk])


@dataclass(frozen=True)
class _Spectrum:
    """Spectral statistics of a block, from its Gram matrix."""

    trace: float
    trace_error: float
    largest: float
    largest_error: float
    frobenius: float


def _spectra(study: Study) -> list[_Spectrum]:
    rank, _ = _rank(study)
    count = len(study.samples)
    size = 4 * count * rank * sum(block.elements for block in study.blocks)
    if size > _GRAM_BYTES:
        raise PassError(
            f"eigenvalues need the gradients of {count} samples for {rank} columns of F at once, {size / 2**30:.1f} "
            "GiB; use fewer samples, or method hawq_v2"
        )

    def rows(gradients: Mapping[str, WeightGradients], block: Block) -> Tensor:
        return torch.cat([gradients[name].matrices() for name in block.sites], -1)

    def work(shard: range) -> list[Tensor]:
        found: list[list[Tensor]] = [[] for _ in study.blocks]
        for stack in study.stacks(shard):
            sent = list(_sent(study, stack, lambda z: study.loss.columns(z, rank)))
            for block, parts in zip(study.blocks, found, strict=True):
                parts.append(torch.cat([rows(gradients, block) for gradients in sent], 1))
        return [torch.cat(parts) for parts in found]

    parts = study.over_shards("gradients of samples", work)
    return [_spectrum(torch.cat(block)) for block in zip(*parts, strict=True)]


def _spectrum(gradients: Tensor) -> _Spectrum:
    """Spectrum of (1 / n) sum r r^T over gradients [n, columns, elements].

    To first order, the error of the largest eigenvalue is that of the mean over samples along its eigenvector.
    """
    samples = gradients.shape[0]
    rows = gradients.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T / samples)
    along = samples * values[-1] * vectors[:, -1].square().view(gradients.shape[:2]).sum(1)
    trace = Moments.of(rows.square().sum(-1).view(gradients.shape[:2]).sum(1))
    return _Spectrum(
        float(trace.mean),
        float(trace.error),
        float(values[-1]),
        float(Moments.of(along).error),
        float(values.square().sum().sqrt()),
    )
