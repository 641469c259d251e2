"""Torch calls expressed by calls that have an operator, for overloads that torch does not decompose well.

Each formula has the arguments of the overload that it replaces, and is traced on tensors without values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

Formula = Callable[..., Any]  # Any: arguments and result of the overload
FormulaFunction = TypeVar("FormulaFunction", bound=Formula)
FORMULAS: dict[OpOverload, Formula] = {}
_aten = torch.ops.aten


def formula(*overloads: OpOverload) -> Callable[[FormulaFunction], FormulaFunction]:
    """Function decorator: the function replaces these overloads."""

    def register(function: FormulaFunction) -> FormulaFunction:
        FORMULAS.update(dict.fromkeys(overloads, function))
        return function

    return register


# --- statistics -----------------------------------------------------------------------------------------------------


@formula(_aten.var_mean.correction)
def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    axes = _axes(x, dim)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    mean = x.mean(axes, keepdim=True)
    squares = (x - mean).square().sum(axes, keepdim=keepdim)
    divisor = max(count - (1 if correction is None else correction), 0)
    return squares / divisor, mean if keepdim else mean.squeeze(axes)


@formula(_aten.var.correction)
def _var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


@formula(_aten.std.correction)
def _std(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


@formula(_aten.std_mean.correction)
def _std_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    var, mean = _var_mean(x, dim, correction=correction, keepdim=keepdim)
    return var.sqrt(), mean


@formula(_aten.batch_norm.default)
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Batch norm with batch statistics, as always in a layer without running statistics."""
    if running_mean is not None:
        raise NotImplementedError
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    var, mean = _var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) / (var + eps).sqrt()
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


@formula(_aten.linalg_vector_norm.default)
def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    x, axes = x.to(dtype or x.dtype), _axes(x, dim)
    if ord == inf:
        return x.abs().amax(axes, keepdim)
    if ord == -inf:
        return x.abs().amin(axes, keepdim)
    if ord == 0:
        return (x != 0).to(x.dtype).sum(axes, keepdim)
    if ord == 1:
        return x.abs().sum(axes, keepdim)
    if ord == 2:
        return x.square().sum(axes, keepdim).sqrt()
    return x.abs().pow(ord).sum(axes, keepdim).pow(1 / ord)


@formula(_aten.logsumexp.default)
def _logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    axes = _axes(x, dim)
    largest = x.amax(axes, keepdim=True)
    finite = torch.where(largest - largest == 0, largest, 0.0)
    total = (x - finite).exp().sum(axes, keepdim=keepdim).log()
    return total + (finite if keepdim else finite.squeeze(axes))


@formula(_aten.aminmax.default)
def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = _axes(x, None if dim is None else [dim])
    return x.amin(axes, keepdim), x.amax(axes, keepdim)


@formula(_aten.count_nonzero.dim_IntList, _aten.count_nonzero.default)
def _count_nonzero(x: Tensor, dim: Sequence[int] | int | None = None) -> Tensor:
    return (x != 0).sum(_axes(x, [dim] if isinstance(dim, int) else dim))


@formula(_aten.nansum.default)
def _nansum(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.where(x.isnan(), 0.0, x).sum(_axes(x, dim), keepdim, dtype=dtype)


@formula(_aten.prod.default)
def _prod_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _prod(x.reshape(-1), 0, dtype=dtype)


@formula(_aten.prod.dim_int)
def _prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Product by halves: the first half times the second, repeated."""
    x = _accumulated(x, dtype)
    while (count := x.shape[dim]) > 1:
        half = count // 2
        product = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([product, x.narrow(dim, count - 1, 1)], dim) if count % 2 else product
    return x if keepdim else x.squeeze(dim)


@formula(_aten.histc.default)
def _histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Counts at or above each lower edge, minus those of the next; the last bin includes its upper edge."""
    if not min < max:  # the range is that of the data
        raise NotImplementedError
    elements = x.reshape(-1)
    starts = torch.linspace(min, max, bins + 1, dtype=x.dtype)[:-1]
    reached = torch.cat([(elements[:, None] >= starts).sum(0), (elements > max).sum()[None]])
    return (reached[:-1] - reached[1:]).to(x.dtype)


# --- scans and order ------------------------------------------------------------------------------------------------


@formula(_aten.cumsum.default)
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return _scan(_accumulated(x, dtype), dim, torch.add)


@formula(_aten.cumprod.default)
def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return _scan(_accumulated(x, dtype), dim, torch.mul)


@formula(_aten.cummax.default)
def _cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running_extremum(x, dim, torch.maximum)


@formula(_aten.cummin.default)
def _cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running_extremum(x, dim, torch.minimum)


def _scan(x: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Scan by doubling: every element combined with all before it: element i with i - 1, then i - 2, i - 4, ..."""
    size, distance = (x.shape[dim] if x.ndim else 1), 1
    while distance < size:
        moved = combine(x.narrow(dim, distance, size - distance), x.narrow(dim, 0, size - distance))
        x = torch.cat([x.narrow(dim, 0, distance), moved], dim)
        distance *= 2
    return x


def _running_extremum(
    x: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Running extremum and its index. Of equal elements the last one counts: its index is the largest index so far of
    an element that equals its running extremum.
    """
    values = _scan(x, dim, combine)
    shape = [-1 if axis == dim % max(x.ndim, 1) else 1 for axis in range(x.ndim)]
    places = torch.arange(x.shape[dim] if x.ndim else 1).view(shape)
    return values, _scan(torch.where(x == values, places, 0), dim, torch.maximum)


@formula(_aten.topk.default)
def _topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    values, places = torch.sort(x, dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)


@formula(_aten.kthvalue.default)
def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, places = torch.sort(x, dim=dim, stable=True)
    found = values.narrow(dim, k - 1, 1), places.narrow(dim, k - 1, 1)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


@formula(_aten.median.dim)
def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


@formula(_aten.median.default)
def _median_of_all(x: Tensor) -> Tensor:
    return _median(x.reshape(-1), 0)[0]


# --- lookups --------------------------------------------------------------------------------------------------------


@formula(_aten.gather.default)
def _gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Lookup in the flattened tensor, at the positions that `index` and its own position give."""
    return x.reshape(-1)[_places(x, dim, index)]


@formula(_aten.take.default)
def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.reshape(-1)[index]


@formula(_aten.index.Tensor, _aten._unsafe_index.Tensor)
def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Indices of several dimensions, which broadcast, as indices of one dimension: the dimensions are joined."""
    known = {axis: index for axis, index in enumerate(indices) if index is not None}
    if any(index.dtype is torch.bool for index in known.values()):
        raise NotImplementedError
    place, given = torch.zeros((), dtype=torch.int64), list(known)
    for axis, index in known.items():
        size = x.shape[axis]
        place = place * size + torch.where(index < 0, index + size, index)
    first, last = given[0], given[-1]
    together = last - first == len(given) - 1
    if not together:
        x = x.permute([*given, *(axis for axis in range(x.ndim) if axis not in given)])
        first, last = 0, len(given) - 1
    joined = x.reshape([*x.shape[:first], -1, *x.shape[last + 1 :]])
    return joined[(slice(None),) * first + (place,)]


@formula(_aten.index_fill.int_Scalar, _aten.index_fill.int_Tensor)
def _index_fill(x: Tensor, dim: int, index: Tensor, value: Tensor | float) -> Tensor:
    shape = [-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)]
    chosen = (torch.arange(x.shape[dim])[:, None] == index.reshape(1, -1)).any(1).view(shape)
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=x.dtype)
    return torch.where(chosen, value.to(x.dtype), x)


@formula(_aten.one_hot.default)
def _one_hot(index: Tensor, classes: int = -1) -> Tensor:
    return (index[..., None] == torch.arange(classes)).to(torch.int64)


@formula(_aten.searchsorted.Tensor)
def _searchsorted(
    bounds: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    if bounds.ndim != 1 or sorter is not None:
        raise NotImplementedError
    return _bucketize(x, bounds, out_int32=out_int32, right=right or side == "right")


@formula(_aten.bucketize.Tensor)
def _bucketize(x: Tensor, bounds: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Number of boundaries below x."""
    below = bounds <= x[..., None] if right else bounds < x[..., None]
    return below.sum(-1).to(torch.int32 if out_int32 else torch.int64)


@formula(_aten.scatter.src)
def _scatter(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    part = source[tuple(slice(size) for size in index.shape)]
    return x.put(_places(x, dim, index), part)


@formula(_aten.scatter.value)
def _scatter_number(x: Tensor, dim: int, index: Tensor, value: float) -> Tensor:
    return x.put(_places(x, dim, index), torch.full(index.shape, value, dtype=x.dtype))


@formula(_aten.scatter_add.default)
def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    part = source[tuple(slice(size) for size in index.shape)]
    return x.put(_places(x, dim, index), part, accumulate=True)


@formula(_aten.index_add.default)
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    places = _places(x, dim, _along(index, dim, source))
    return x.put(places, source if alpha == 1 else source * alpha, accumulate=True)


@formula(_aten.index_copy.default)
def _index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return x.put(_places(x, dim, _along(index, dim, source)), source)


@formula(_aten.index_put.default, _aten._unsafe_index_put.default)
def _index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Writes at the positions found by the same lookup of the element numbers."""
    given = [index for index in indices if index is not None]
    if len(given) == 1 and given[0].dtype is torch.bool:
        mask = given[0]
        if accumulate or values.numel() != 1 or indices[0] is None:
            raise NotImplementedError
        return torch.where(mask.view([*mask.shape, *[1] * (x.ndim - mask.ndim)]), values.reshape(()), x)
    places = _index(torch.arange(x.numel()).view(x.shape), indices)
    return x.put(places, values.expand(places.shape), accumulate)


@formula(_aten.diagonal.default, _aten.diagonal_copy.default)
def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Every (columns + 1)-th element of the flattened matrix."""
    dim1, dim2 = dim1 % x.ndim, dim2 % x.ndim
    rest = [axis for axis in range(x.ndim) if axis not in (dim1, dim2)]
    rows, columns = x.shape[dim1], x.shape[dim2]
    first = offset if offset >= 0 else -offset * columns
    count = max(min(rows + min(offset, 0), columns - max(offset, 0)), 0)
    flat = x.permute([*rest, dim1, dim2]).reshape([*(x.shape[axis] for axis in rest), rows * columns])
    return flat[..., first + torch.arange(count) * (columns + 1)]


@formula(_aten.trace.default)
def _trace(x: Tensor) -> Tensor:
    return _diagonal(x).sum()


@formula(_aten.unfold.default, _aten.unfold_copy.default)
def _windows(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    axis = dimension % x.ndim
    count = (x.shape[axis] - size) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)
    return x[(slice(None),) * axis + (places,)].movedim(axis + 1, -1)


# --- arithmetic -----------------------------------------------------------------------------------------------------


@formula(_aten.add.Tensor, _aten.add.Scalar)
def _add(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    """A sum with a factor, or of booleans."""
    if alpha != 1:
        return x + y * alpha
    if x.dtype is torch.bool and isinstance(y, Tensor) and y.dtype is torch.bool:
        return x | y
    raise NotImplementedError


@formula(_aten.sub.Tensor, _aten.sub.Scalar)
def _sub(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    if alpha == 1:
        raise NotImplementedError
    return x - y * alpha


@formula(_aten.rsub.Tensor, _aten.rsub.Scalar)
def _rsub(x: Tensor, y: Tensor | float, alpha: float = 1) -> Tensor:
    if alpha == 1:
        raise NotImplementedError
    return y - x * alpha


@formula(_aten.mul.Tensor)
def _mul(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype is torch.bool and y.dtype is torch.bool:
        return x & y
    raise NotImplementedError


@formula(_aten.div.Tensor_mode, _aten.div.Scalar_mode)
def _rounded_division(x: Tensor, y: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is None:
        return x / y
    if rounding_mode == "floor":
        return torch.floor_divide(x, y)
    if x.dtype.is_floating_point or (isinstance(y, Tensor) and y.dtype.is_floating_point):
        return (x / y).trunc()
    return torch.floor_divide(x - torch.fmod(x, y), y)


@formula(_aten.floor_divide.Scalar)
def _floor_divide(x: Tensor, y: float) -> Tensor:
    return torch.floor_divide(x, torch.full((), y, dtype=torch.result_type(x, y)))


@formula(_aten.clamp.Tensor, _aten.clamp.default, _aten.clip.Tensor, _aten.clip.default)
def _clamp(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    if min is not None:
        x = torch.maximum(x, _as_tensor(min, x))
    return x if max is None else torch.minimum(x, _as_tensor(max, x))


@formula(_aten.clamp_min.Tensor, _aten.clamp_min.default)
def _clamp_min(x: Tensor, min: Tensor | float) -> Tensor:
    return _clamp(x, min)


@formula(_aten.clamp_max.Tensor, _aten.clamp_max.default)
def _clamp_max(x: Tensor, max: Tensor | float) -> Tensor:
    return _clamp(x, None, max)


@formula(_aten.neg.default)
def _neg(x: Tensor) -> Tensor:
    """Negation of integers; floats have an operator."""
    return 0 - x


@formula(_aten.abs.default)
def _abs(x: Tensor) -> Tensor:
    return torch.maximum(x, 0 - x)


@formula(_aten.sign.default)
def _sign(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@formula(_aten.pow.Tensor_Scalar, _aten.square.default)
def _whole_power(x: Tensor, exponent: float = 2) -> Tensor:
    """Small whole powers of integers; those of floats have an operator."""
    if x.dtype is torch.bool or exponent not in (1, 2, 3, 4):
        raise NotImplementedError
    y = x
    for _ in range(int(exponent) - 1):
        y = y * x
    return y


@formula(_aten.fmax.default)
def _fmax(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x.isnan(), y, torch.where(y.isnan(), x, torch.maximum(x, y)))


@formula(_aten.fmin.default)
def _fmin(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x.isnan(), y, torch.where(y.isnan(), x, torch.minimum(x, y)))


@formula(_aten.isnan.default)
def _isnan(x: Tensor) -> Tensor:
    return x.ne(x)


@formula(_aten.isfinite.default)
def _isfinite(x: Tensor) -> Tensor:
    return x - x == 0


@formula(_aten.isinf.default)
def _isinf(x: Tensor) -> Tensor:
    return x.eq(x) & (x - x != 0)


@formula(_aten.nan_to_num.default)
def _nan_to_num(
    x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    limits = torch.finfo(x.dtype)
    y = torch.where(x.isnan(), nan or 0.0, x)
    y = torch.where(x > limits.max, limits.max if posinf is None else posinf, y)
    return torch.where(x < limits.min, limits.min if neginf is None else neginf, y)


@formula(_aten.round.decimals)
def _round(x: Tensor, *, decimals: int) -> Tensor:
    ten = 10.0 ** abs(decimals)
    return (x * ten).round() / ten if decimals > 0 else (x / ten).round() * ten


@formula(_aten.erfc.default)
def _erfc(x: Tensor) -> Tensor:
    return 1 - x.erf()


@formula(_aten.rrelu.default)
def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    if training:
        raise NotImplementedError
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


@formula(_aten.xlogy.Tensor)
def _xlogy(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x == 0) & ~y.isnan(), 0.0, x * y.log())


@formula(_aten.hypot.default)
def _hypot(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


@formula(_aten.logaddexp.default)
def _logaddexp(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y) + torch.log1p((-(x - y).abs()).exp())


@formula(_aten.logaddexp2.default)
def _logaddexp2(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y) + torch.log2(1 + torch.exp2(-(x - y).abs()))


@formula(_aten.heaviside.default)
def _heaviside(x: Tensor, values: Tensor) -> Tensor:
    return torch.where(x == 0, values, (x > 0).to(x.dtype))


@formula(_aten.copysign.Tensor)
def _copysign(x: Tensor, y: Tensor) -> Tensor:
    magnitude = x.abs()
    return torch.where((y < 0) | ((y == 0) & (1 / y < 0)), -magnitude, magnitude)


# --- products -------------------------------------------------------------------------------------------------------


@formula(_aten.bilinear.default)
def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    results, left, right = weight.shape
    rows = weight.permute(0, 2, 1).reshape(results * right, left)
    product = _linear(x, rows).unflatten(-1, (results, right))
    sums: Tensor = (product * y[..., None, :]).sum(-1)
    return sums if bias is None else sums + bias


@formula(_aten.cdist.default, _aten._cdist_forward.default)
def _cdist(x: Tensor, y: Tensor, p: float = 2, compute_mode: int | None = None) -> Tensor:
    return _vector_norm(x[..., :, None, :] - y[..., None, :, :], p, [-1])


# --- resampling -----------------------------------------------------------------------------------------------------

_Size = Sequence[int] | None
_Factors = Sequence[float] | None


@formula(_aten.upsample_bicubic2d.vec)
def _bicubic(x: Tensor, size: _Size, align_corners: bool, factors: _Factors) -> Tensor:
    return _resampled(x, _aten.upsample_bicubic2d.vec, size, factors, align_corners)


@formula(_aten._upsample_bicubic2d_aa.vec)
def _smooth_bicubic(x: Tensor, size: _Size, align_corners: bool, factors: _Factors) -> Tensor:
    return _resampled(x, _aten._upsample_bicubic2d_aa.vec, size, factors, align_corners)


@formula(_aten._upsample_bilinear2d_aa.vec)
def _smooth_bilinear(x: Tensor, size: _Size, align_corners: bool, factors: _Factors) -> Tensor:
    return _resampled(x, _aten._upsample_bilinear2d_aa.vec, size, factors, align_corners)


def _resampled(
    x: Tensor, overload: OpOverload, size: _Size, factors: _Factors, align_corners: bool
) -> Tensor:
    """One matrix for each dimension, derived from the resampling of an image that varies only along this dimension."""
    height, width = x.shape[2:]
    with unset_fake_temporarily(), disable_proxy_modes_tracing():
        rows = torch.eye(height)[:, None, :, None].expand(height, 1, height, width).contiguous()
        columns = torch.eye(width)[:, None, None, :].expand(width, 1, height, width).contiguous()
        down = overload(rows, size, align_corners, factors)[:, 0, :, 0].t().tolist()
        across = overload(columns, size, align_corners, factors)[:, 0, 0, :].t().tolist()
    return _linear(_linear(x, torch.tensor(across)).transpose(2, 3), torch.tensor(down)).transpose(2, 3)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """A product in a form that becomes the operator `linear` (one row of weights per output), for any rank."""
    rows = torch.addmm(weight.new_zeros(len(weight)), x.reshape(-1, x.shape[-1]), weight.t())
    return rows.view([*x.shape[:-1], len(weight)])


def _places(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Element numbers: `index` along `dim`, and the position in `index` along all other dimensions."""
    dim %= max(x.ndim, 1)
    place = index * _stride(x, dim)
    for axis, size in enumerate(index.shape):
        if axis != dim:
            shape = [-1 if a == axis else 1 for a in range(index.ndim)]
            place = place + (torch.arange(size) * _stride(x, axis)).view(shape)
    return place


def _axes(x: Tensor, dim: Sequence[int] | None) -> list[int]:
    """Dimensions counted from the front; all dimensions if none is given."""
    return [axis % x.ndim for axis in dim] if dim else list(range(x.ndim))


def _stride(x: Tensor, axis: int) -> int:
    stride = 1
    for size in x.shape[axis + 1 :]:
        stride *= size
    return stride


def _accumulated(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in torch's accumulation type: int64 for integers and booleans."""
    return x.to(dtype or (x.dtype if x.dtype.is_floating_point else torch.int64))


def _as_tensor(bound: Tensor | float, x: Tensor) -> Tensor:
    return bound if isinstance(bound, Tensor) else torch.full((), bound, dtype=torch.result_type(x, bound))


def _along(index: Tensor, dim: int, source: Tensor) -> Tensor:
    """An index for each element of `source`, constant along all dimensions but `dim`."""
    shape = [-1 if axis == dim % source.ndim else 1 for axis in range(source.ndim)]
    return index.view(shape).expand(source.shape)
