"""Calls of torch that users write every day reach C: in float equal to torch, in int8 near it.

`pytest tests/compiler/test_everyday_calls.py --everyday-table` prints every call with its error in float, in units of
the last place of the largest element, and the signal-to-noise ratio of its int8 form.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpress.backends.c.check import check
from fxpress.backends.c.emit import emit
from fxpress.backends.c.tools.toolchain import WARNINGS, find_compiler, link_shared
from fxpress.backends.c.write.ports import from_memory, to_memory
from fxpress.compiler.frontend.capture import capture
from fxpress.compiler.frontend.decompose import for_c
from fxpress.ir import Graph
from fxpress.passes import Context, find_pass
from fxpress.specs.options import CleanOptions, QuantizeOptions
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target, Toolchain


@dataclass(frozen=True)
class Call:
    """One call: a function or a module of tensors.

    `ulps` is how far its C may be from torch, in units of the last place of the largest element; `int8_db` is the
    least signal-to-noise ratio of its int8 form, None where it has whole numbers only or stays in float.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Tensor, ...]
    ulps: float = 32.0
    int8_db: float | None = 25.0


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale


def uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Uniform random numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.rand(shape, generator=generator) * (high - low) + low


def integers(*shape: int, high: int = 5, low: int = 0, seed: int = 0) -> Tensor:
    """Random whole numbers (int64)."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator)


X = normal(1, 4, 6)
Y = normal(1, 4, 6, seed=1)
V = normal(1, 8)
IMAGE = normal(1, 3, 5, 6)
POSITIVE = uniform(1, 4, 6, low=0.2, high=3.0)
TIES = integers(1, 4, 6, high=4).float()
EVEN = normal(1, 6, 6)
IDS = integers(1, 5, high=6)
BINS = integers(1, 4, 3, high=6)
GROUPS_OF_ROWS = torch.tensor([3, 3, 7, 9], dtype=torch.int32)
STATE = normal(1, 8, seed=3, scale=0.5)
SEQUENCE = normal(1, 5, 6)


def _with(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random parameters and statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.4
            tensor.data.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn)
    return module.eval()


def _using(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that calls the module in its own way."""
    return lambda *operands: function(module, *operands)


def _masked(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = 0.5
    return y


def _calls(*rows: tuple[Any, ...]) -> list[Call]:
    """Calls from (name, function, operands..., {options})."""
    found = []
    for name, function, *rest in rows:
        options = rest.pop() if isinstance(rest[-1], dict) else {}
        found.append(Call(name, function, tuple(rest), **options))
    return found


FLOAT: Mapping[str, Any] = {"int8_db": None}
COARSE: Mapping[str, Any] = {"int8_db": 15.0}

CALLS: list[Call] = _calls(
    # gates and activations
    ("glu", lambda x: F.glu(x, 1), X),
    ("glu, last dimension", F.glu, X),
    ("threshold", lambda x: F.threshold(x, 0.1, -0.5), X),
    ("softshrink", lambda x: F.softshrink(x, 0.3), X),
    ("hardshrink", lambda x: F.hardshrink(x, 0.3), X),
    ("tanhshrink", F.tanhshrink, X, COARSE),
    ("rrelu", F.rrelu, X),
    ("softsign", F.softsign, X),
    ("softmin", lambda x: F.softmin(x, -1), X),
    ("hardtanh", F.hardtanh, X),
    ("relu6", F.relu6, X),
    ("celu", F.celu, X),
    ("selu", F.selu, X),
    ("logsigmoid", F.logsigmoid, X),
    ("normalize", lambda x: F.normalize(x, dim=-1), X),
    ("normalize, p=1", lambda x: F.normalize(x, p=1.0, dim=1), X),
    ("cosine_similarity", lambda x, y: F.cosine_similarity(x, y, dim=1), X, Y),
    ("pairwise_distance", F.pairwise_distance, V, V.flip(1)),
    ("local_response_norm", lambda x: F.local_response_norm(x, 3), IMAGE),
    ("batch_norm without statistics", _with(nn.BatchNorm1d(4, track_running_stats=False)), X),
    ("batch_norm 2d without statistics", _with(nn.BatchNorm2d(3, track_running_stats=False)), IMAGE),
    ("batch_norm without statistics or weights", lambda x: F.batch_norm(x, None, None, training=True), X),
    # reductions
    ("max of two", torch.max, X, Y),
    ("min of two", torch.min, X, Y),
    ("fmax", torch.fmax, X, Y),
    ("fmin", torch.fmin, X, Y),
    ("max of all", lambda x: x.max(), X),
    ("min of all", lambda x: x.min(), X),
    ("max along, values and indices", lambda x: x.max(1), X),
    ("min along, values and indices", lambda x: x.min(-1), X),
    ("min along, kept", lambda x: x.min(1, keepdim=True), X),
    ("amin", lambda x: x.amin(1), X),
    ("amin over several", lambda x: x.amin((1, 2), keepdim=True), X),
    ("amax over several", lambda x: x.amax((-1, -2)), X),
    ("aminmax", lambda x: torch.aminmax(x, dim=1), X),
    ("argmin", lambda x: x.argmin(-1), X),
    ("argmin, kept", lambda x: x.argmin(1, keepdim=True), X),
    ("argmin of all", lambda x: x.argmin(), X),
    ("argmax of all", lambda x: x.argmax(), X),
    ("argmax of integers", lambda x: x.argmax(-1), BINS, FLOAT),
    ("std", lambda x: x.std(1), X, COARSE),
    ("std of all", lambda x: x.std(), X),
    ("std, biased, kept", lambda x: x.std((1, 2), unbiased=False, keepdim=True), X),
    ("var", lambda x: x.var(-1), X, COARSE),
    ("var, biased", lambda x: x.var(1, unbiased=False), X, COARSE),
    ("var of all", lambda x: x.var(), X),
    ("var_mean", lambda x: torch.var_mean(x, (1, 2), keepdim=True), X),
    ("std_mean", lambda x: torch.std_mean(x, 1), X, COARSE),
    ("norm", lambda x: x.norm(dim=-1), X),
    ("norm of all", lambda x: x.norm(), X),
    ("norm, p=1", lambda x: x.norm(p=1, dim=1, keepdim=True), X),
    ("norm, p=inf", lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1), X),
    ("norm, p=3", lambda x: torch.linalg.vector_norm(x, 3, dim=-1), X),
    ("logsumexp", lambda x: x.logsumexp(1), X),
    ("logsumexp over several", lambda x: x.logsumexp((1, 2), keepdim=True), X),
    ("prod", lambda x: x.prod(-1), POSITIVE, COARSE),
    ("prod of all", lambda x: x.prod(), uniform(1, 8, low=0.8, high=1.3)),
    ("prod, kept", lambda x: x.prod(1, keepdim=True), POSITIVE),
    ("any", lambda x: (x > 1.0).any(-1), X, FLOAT),
    ("any of all", lambda x: (x > 1.0).any(), X, FLOAT),
    ("all", lambda x: (x > -1.0).all(1, keepdim=True), X, FLOAT),
    ("all of all", lambda x: (x > -9.0).all(), X, FLOAT),
    ("any of integers", lambda x: x.any(-1), BINS, FLOAT),
    ("sum of booleans", lambda x: (x > 0).sum(-1), X, FLOAT),
    ("sum of integers", lambda x: x.sum(1), BINS, FLOAT),
    ("mean of integers", lambda x: x.float().mean(1), BINS, FLOAT),
    ("count_nonzero", lambda x: torch.count_nonzero(x, dim=1), TIES, FLOAT),
    ("median", lambda x: x.median(-1)[0], X),
    ("median of all", lambda x: x.median(), X),
    ("kthvalue", lambda x: x.kthvalue(2, 1)[0], X),
    ("nansum", lambda x: x.nansum(1), X),
    # sorting and scanning
    ("cumsum", lambda x: x.cumsum(-1), X),
    ("cumsum, first", lambda x: x.cumsum(1), X),
    ("cumsum of integers", lambda x: x.cumsum(1), BINS, FLOAT),
    ("cumsum of booleans", lambda x: (x > 0).cumsum(-1), X, FLOAT),
    ("cumprod", lambda x: x.cumprod(-1), uniform(1, 4, 6, low=0.7, high=1.3)),
    ("cummax", lambda x: x.cummax(1)[0], X),
    ("cummin", lambda x: x.cummin(1)[0], X),
    ("topk", lambda x: x.topk(3, -1), X),
    ("topk, smallest", lambda x: x.topk(2, 1, largest=False), X),
    ("sort", lambda x: x.sort(-1), X),
    ("sort, descending", lambda x: x.sort(1, descending=True), X),
    ("sort, stable", lambda x: torch.sort(x, dim=-1, stable=True), TIES),
    ("argsort", lambda x: x.argsort(-1), X, FLOAT),
    ("argsort, descending", lambda x: x.argsort(1, descending=True), X, FLOAT),
    ("msort", lambda x: torch.msort(x[0]), X),
    ("diff", lambda x: torch.diff(x, dim=1), X),
    # products
    ("einsum, matrix and vector", lambda x, y: torch.einsum("bct,bt->bc", x, y), X, normal(1, 6)),
    ("einsum, matrices", lambda x, y: torch.einsum("bij,bkj->bik", x, y), X, Y),
    ("einsum, outer", lambda x, y: torch.einsum("bi,bj->bij", x, y), V, normal(1, 3)),
    ("einsum, transposed", lambda x: torch.einsum("bij->bji", x), X),
    ("einsum, sum", lambda x: torch.einsum("bij->b", x), X),
    ("einsum, dots", lambda x, y: torch.einsum("...ij,...jk->...ik", x, y.transpose(1, 2)), X, Y),
    ("lerp", lambda x, y: torch.lerp(x, y, 0.3), X, Y),
    ("lerp, tensor", torch.lerp, X, Y, uniform(1, 4, 6)),
    ("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.5), X, Y, POSITIVE),
    ("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z, value=0.5), X, Y, POSITIVE),
    (
        "baddbmm",
        lambda x, y, z: torch.baddbmm(x, y, z, beta=0.5, alpha=2.0),
        normal(1, 4, 4),
        X,
        normal(1, 6, 4),
    ),
    ("baddbmm, plain", torch.baddbmm, normal(1, 4, 4), X, normal(1, 6, 4)),
    ("addmm", _with(nn.Linear(8, 3)), V),
    ("outer", lambda x, y: torch.outer(x[0], y[0]), V, normal(1, 3)),
    ("dot", lambda x, y: torch.dot(x[0], y[0]), V, V.flip(1)),
    ("mv", lambda x, y: torch.mv(x[0], y[0]), X, normal(1, 6)),
    ("tensordot", lambda x, y: torch.tensordot(x, y, dims=([2], [2])), X, Y),
    ("bilinear", _with(nn.Bilinear(8, 8, 3)), V, V.flip(1)),
    ("cdist", torch.cdist, X, Y),
    (
        "grouped_mm",
        lambda x, w: torch._grouped_mm(x.bfloat16(), w.bfloat16(), offs=GROUPS_OF_ROWS).float(),
        normal(9, 8),
        normal(4, 8, 16),
        FLOAT,
    ),
    ("kron", torch.kron, V, normal(1, 3)),
    ("cross", lambda x, y: torch.linalg.cross(x, y, dim=1), normal(1, 3, 4), normal(1, 3, 4, seed=1)),
    ("trace", lambda x: torch.trace(x[0]), EVEN),
    ("add, alpha", lambda x, y: torch.add(x, y, alpha=0.3), X, Y),
    ("sub, alpha", lambda x, y: torch.sub(x, y, alpha=2), X, Y),
    ("rsub, alpha", lambda x, y: torch.rsub(x, y, alpha=2), X, Y),
    # clamps and elementwise functions
    ("clamp with tensor bounds", lambda x, y: torch.clamp(x, y - 1, y + 1), X, Y),
    ("clamp with a tensor below", lambda x, y: torch.clamp(x, min=y), X, Y),
    ("clamp of integers", lambda x: x.clamp(1, 3), BINS, FLOAT),
    ("sign", torch.sign, X),
    ("sgn", torch.sgn, X),
    ("ceil", torch.ceil, normal(1, 4, 6, scale=3)),
    ("trunc", torch.trunc, normal(1, 4, 6, scale=3)),
    ("frac", torch.frac, normal(1, 4, 6, scale=3), {"int8_db": 5.0}),
    ("round to decimals", lambda x: torch.round(x, decimals=1), X),
    ("log2", torch.log2, POSITIVE),
    ("log10", torch.log10, POSITIVE),
    ("exp2", torch.exp2, X),
    ("expm1", torch.expm1, X),
    ("atan", torch.atan, X),
    ("atan2", torch.atan2, X, Y),
    ("tan", torch.tan, uniform(1, 4, 6, low=-1, high=1)),
    ("asin", torch.asin, uniform(1, 4, 6, low=-0.9, high=0.9)),
    ("acos", torch.acos, uniform(1, 4, 6, low=-0.9, high=0.9)),
    ("sinh", torch.sinh, X),
    ("cosh", torch.cosh, X),
    ("asinh", torch.asinh, X),
    ("acosh", torch.acosh, uniform(1, 4, 6, low=1.1, high=4)),
    ("atanh", torch.atanh, uniform(1, 4, 6, low=-0.9, high=0.9)),
    ("erfc", torch.erfc, X),
    ("logit", torch.logit, uniform(1, 4, 6, low=0.1, high=0.9)),
    ("sinc", torch.sinc, X),
    ("xlogy", torch.xlogy, X, POSITIVE),
    ("remainder", lambda x: torch.remainder(x, 0.7), X, COARSE),
    ("remainder, negative", lambda x: torch.remainder(x, -0.7), X, COARSE),
    ("remainder, tensors", torch.remainder, X, POSITIVE, {"int8_db": 5.0}),
    ("remainder of integers", lambda x: x % 3, BINS, FLOAT),
    ("fmod", lambda x: torch.fmod(x, 0.7), X, COARSE),
    ("floor_divide", lambda x: x // 0.5, X, COARSE),
    ("floor_divide of integers", lambda x: x // 2, BINS, FLOAT),
    ("div, rounded", lambda x, y: torch.div(x, y, rounding_mode="floor"), X, POSITIVE, COARSE),
    ("div, truncated", lambda x, y: torch.div(x, y, rounding_mode="trunc"), X, POSITIVE, COARSE),
    ("division of integers", lambda x: x / 3, BINS, FLOAT),
    ("pow, tensors", torch.pow, POSITIVE, X, {"int8_db": 20.0}),
    ("pow of a number", lambda x: 2.0**x, X),
    ("float_power", lambda x: torch.float_power(x, 2).float(), X),
    ("hypot", torch.hypot, X, Y),
    ("logaddexp", torch.logaddexp, X, Y),
    ("square", torch.square, X),
    ("nan_to_num", torch.nan_to_num, X),
    ("isnan", torch.isnan, X, FLOAT),
    ("isfinite", torch.isfinite, X, FLOAT),
    ("heaviside", torch.heaviside, X, Y),
    ("copysign", torch.copysign, X, Y),
    ("abs of integers", lambda x: (x - 3).abs(), BINS, FLOAT),
    ("neg of integers", lambda x: -x, BINS, FLOAT),
    # choice, indices
    ("gather", lambda x, i: torch.gather(x, 1, i), normal(1, 6, 3), BINS),
    ("gather, last", lambda x, i: x.gather(-1, i), X, BINS),
    ("take_along_dim", lambda x, i: torch.take_along_dim(x, i, 2), X, BINS),
    ("take", torch.take, X, IDS),
    ("index_select", lambda x: x.index_select(1, torch.tensor([2, 0])), X),
    ("index with two tensors", lambda x: x[:, torch.tensor([0, 2]), torch.tensor([1, 3])], X),
    ("index apart", lambda x: x[torch.tensor([0]), :, torch.tensor([1])], X),
    ("index with given numbers", lambda x, i: x[:, 0][:, i[0]], X, IDS),
    ("one_hot", lambda i: F.one_hot(i, 6), IDS, FLOAT),
    ("one_hot in float", lambda i: F.one_hot(i, 6).float(), IDS, FLOAT),
    ("index_fill", lambda x: x.index_fill(1, torch.tensor([0, 2]), 0.5), X),
    ("masked_fill, tensor", lambda x: x.masked_fill(x > 1, torch.tensor(0.5)), X),
    ("masked_fill of integers", lambda x: x.masked_fill(x > 2, 0), BINS, FLOAT),
    ("where, numbers", lambda x: torch.where(x > 0, x, 0.0), X),
    ("where, two numbers", lambda x: torch.where(x > 0, 1.0, -1.0), X),
    ("written slice", _masked, X),
    ("scatter", lambda x, s: x.scatter(1, torch.tensor([[[0], [2]]]).expand(1, 2, 6), s), X, normal(1, 2, 6)),
    ("index_add", lambda x, s: x.index_add(1, torch.tensor([1, 3]), s), X, normal(1, 2, 6)),
    ("index_copy", lambda x, s: x.index_copy(1, torch.tensor([1, 3]), s), X, normal(1, 2, 6)),
    ("searchsorted", lambda x: torch.searchsorted(torch.linspace(-2, 2, 9), x), X, FLOAT),
    ("histc", lambda x: torch.histc(x, 5, -1, 1.5), X, FLOAT),
    ("histc of numbers", lambda i: torch.histc(i.float(), 4, 0, 3), IDS, FLOAT),
    ("bucketize", lambda x: torch.bucketize(x, torch.linspace(-2, 2, 9)), X, FLOAT),
    ("embedding", _with(nn.Embedding(6, 4)), IDS, FLOAT),
    ("EmbeddingBag, mean", _with(nn.EmbeddingBag(6, 4, mode="mean")), IDS, FLOAT),
    ("EmbeddingBag, sum", _with(nn.EmbeddingBag(6, 4, mode="sum")), IDS, FLOAT),
    ("EmbeddingBag, max", _with(nn.EmbeddingBag(6, 4, mode="max")), IDS, FLOAT),
    # shapes
    ("unfold of an image", lambda x: F.unfold(x, 3, padding=1), IMAGE),
    ("unfold, strided", lambda x: F.unfold(x, (2, 3), stride=2), IMAGE),
    ("fold", lambda x: F.fold(x, (4, 4), 2, stride=2), normal(1, 8, 4)),
    ("fold, overlapping", lambda x: F.fold(x, (4, 4), 3, padding=1), normal(1, 9, 16)),
    ("Tensor.unfold", lambda x: x.unfold(2, 3, 2), X),
    ("repeat_interleave", lambda x: x.repeat_interleave(2, 1), X),
    ("repeat_interleave, flat", lambda x: x.repeat_interleave(3), V),
    (
        "repeat_interleave, counts",
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 1]), 1, output_size=4),
        X,
    ),
    ("diagonal", lambda x: x.diagonal(dim1=1, dim2=2), EVEN),
    ("diagonal, offset", lambda x: x.diagonal(1, 1, 2), X),
    ("diag_embed", torch.diag_embed, V),
    ("tril", torch.tril, EVEN),
    ("triu", lambda x: x.triu(1), X),
    ("rot90", lambda x: torch.rot90(x, 1, (1, 2)), X),
    ("rot90, twice", lambda x: torch.rot90(x, 2, (1, 2)), X),
    ("fliplr", torch.fliplr, X),
    ("swapaxes", lambda x: x.swapaxes(1, 2), X),
    ("meshgrid", lambda x: torch.meshgrid(x[0], x[0], indexing="ij")[1], V),
    ("cartesian broadcast", lambda x: torch.stack(torch.broadcast_tensors(x, x.new_zeros(2, 1, 1)), 1)[0], X),
    ("chunk", lambda x: x.chunk(2, 1)[1], X),
    ("tensor_split", lambda x: x.tensor_split(3, 2)[1], X),
    ("hsplit", lambda x: torch.hsplit(x, 2)[0], X),
    ("hstack", lambda x, y: torch.hstack((x, y)), X, Y),
    ("column_stack", lambda x, y: torch.column_stack((x, y)), V, V),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), normal(1, 8, 3, 2)),
    ("channel_shuffle", lambda x: F.channel_shuffle(x, 2), normal(1, 4, 3, 2)),
    ("reflect padding, negative", lambda x: F.pad(x, (-1, 2), mode="reflect"), X),
    ("reflect padding of an image, negative", lambda x: F.pad(x, (2, -1, -1, 1), mode="reflect"), IMAGE),
    ("replicate padding, negative", lambda x: F.pad(x, (2, -1), mode="replicate"), X),
    ("circular padding, negative", lambda x: F.pad(x, (-1, 2), mode="circular"), X),
    ("constant padding, negative", lambda x: F.pad(x, (-1, 2), value=0.5), X),
    # resampling
    ("nearest-exact", lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), IMAGE),
    ("nearest-exact, 1-D", lambda x: F.interpolate(x, size=9, mode="nearest-exact"), X),
    ("nearest-exact, smaller", lambda x: F.interpolate(x, size=(3, 4), mode="nearest-exact"), IMAGE),
    ("bicubic", lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), IMAGE),
    ("bicubic, aligned", lambda x: F.interpolate(x, size=(8, 7), mode="bicubic", align_corners=True), IMAGE),
    ("bicubic, smaller", lambda x: F.interpolate(x, size=(3, 4), mode="bicubic"), IMAGE),
    ("bicubic, antialiased", lambda x: F.interpolate(x, size=(3, 4), mode="bicubic", antialias=True), IMAGE),
    (
        "bilinear, antialiased",
        lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True),
        IMAGE,
    ),
    (
        "grid_sample",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        IMAGE,
        uniform(1, 4, 4, 2, low=-1.1, high=1.1),
    ),
    ("adaptive max pooling, uneven", lambda x: F.adaptive_max_pool2d(x, (2, 4)), IMAGE),
    ("adaptive average pooling, uneven", lambda x: F.adaptive_avg_pool2d(x, (2, 4)), IMAGE),
    ("max pooling with indices", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], IMAGE),
    ("lp_pool", lambda x: F.lp_pool2d(x.abs(), 2, 2), IMAGE),
    # element types
    ("int64 arange added", lambda x: x + torch.arange(6), X),
    ("integers times floats", lambda x, i: x[:, :, :3] * i, X, BINS),
    ("floats over integers", lambda x, i: x[:, :, :3] / (i + 1), X, BINS),
    ("comparison of floats and integers", lambda x, i: x[:, :, :3] > i, X, BINS, FLOAT),
    ("booleans times floats", lambda x: x * (x > 0), X),
    ("where of floats and integers", lambda x, i: torch.where(x[:, :, :3] > 0, x[:, :, :3], i), X, BINS),
    ("bool and int arithmetic", lambda x: (x > 0) * 3 + 1, X, FLOAT),
    ("half and back", lambda x: x.half().float(), X),
    ("computed in half", lambda x: (x.half() * 1.1 + 0.3).float(), X, {"ulps": 8192.0}),
    ("bfloat16 and back", lambda x: x.bfloat16().float(), X),
    ("double and back", lambda x: (x.double() * 1.1).float(), X),
    ("double statistics", lambda x: x.double().mean(-1).float(), X),
    ("int32", lambda i: i.int() + 1, BINS, FLOAT),
    ("float to int64", lambda x: x.long(), normal(1, 4, 6, scale=3), FLOAT),
    ("bool to float", lambda x: (x > 0).float(), X),
    ("arange positions", lambda x: x * torch.arange(6, device=x.device, dtype=x.dtype), X),
    ("full_like", lambda x: x + torch.full_like(x, 0.5), X),
    ("bitwise of booleans", lambda x: (x > 0) ^ (x < 1), X, FLOAT),
    # recurrence
    ("GRUCell", _with(nn.GRUCell(6, 8)), normal(1, 6), STATE),
    ("GRUCell without state", _with(nn.GRUCell(6, 8)), normal(1, 6)),
    ("GRUCell without bias", _with(nn.GRUCell(6, 8, bias=False)), normal(1, 6), STATE),
    ("GRUCell of a vector", _using(_with(nn.GRUCell(6, 8)), lambda m, x: m(x[0])[None]), normal(1, 6)),
    (
        "LSTMCell",
        _using(_with(nn.LSTMCell(6, 8)), lambda m, x, h, c: m(x, (h, c))),
        normal(1, 6),
        STATE,
        STATE.flip(1),
    ),
    ("LSTMCell without state", _with(nn.LSTMCell(6, 8)), normal(1, 6)),
    ("RNNCell", _with(nn.RNNCell(6, 8)), normal(1, 6), STATE),
    ("RNNCell, relu", _with(nn.RNNCell(6, 8, nonlinearity="relu")), normal(1, 6), STATE),
    ("RNN, relu", _with(nn.RNN(6, 8, nonlinearity="relu", batch_first=True)), SEQUENCE),
    (
        "RNN, relu, two layers, both directions",
        _with(nn.RNN(6, 8, 2, nonlinearity="relu", batch_first=True, bidirectional=True)),
        SEQUENCE,
    ),
    (
        "GRU, two layers, both directions",
        _with(nn.GRU(6, 8, 2, batch_first=True, bidirectional=True)),
        SEQUENCE,
    ),
    ("GRU without batch", _using(_with(nn.GRU(6, 8)), lambda m, x: m(x[0])[0][None]), SEQUENCE),
    (
        "LSTM with state",
        _using(_with(nn.LSTM(6, 8, batch_first=True)), lambda m, x, h, c: m(x, (h[None], c[None]))[0]),
        SEQUENCE,
        STATE,
        STATE.flip(1),
    ),
    ("LSTM without batch", _using(_with(nn.LSTM(6, 8, 2)), lambda m, x: m(x[0])[0][None]), SEQUENCE),
    ("LSTM with projection", _with(nn.LSTM(6, 8, proj_size=3, batch_first=True)), SEQUENCE),
    (
        "LSTM with projection, two layers, both directions",
        _with(nn.LSTM(6, 8, 2, proj_size=3, batch_first=True, bidirectional=True)),
        SEQUENCE,
    ),
    (
        "LSTM with projection without bias",
        _with(nn.LSTM(6, 8, bias=False, proj_size=3, batch_first=True)),
        SEQUENCE,
        {"int8_db": 20.0},
    ),
)


HOST = Target(
    name="host", description="a computer", isa="host", toolchain=Toolchain(commands=("gcc",), flags=())
)
GROUP = 24
GROUPS = [CALLS[i : i + GROUP] for i in range(0, len(CALLS), GROUP)]
AT_LEAST = 75


class Together(nn.Module):
    """Several calls as one network: the operands of all as inputs, the results of each as a list."""

    def __init__(self, calls: Sequence[Call]) -> None:
        super().__init__()
        self.calls = calls
        self.modules_of_calls = nn.ModuleList(c.function for c in calls if isinstance(c.function, nn.Module))

    def forward(self, *operands: Tensor) -> list[list[Tensor]]:
        remaining = iter(operands)
        return [
            [y for y in pytree.tree_leaves(call.function(*(next(remaining) for _ in call.operands)))]
            for call in self.calls
        ]


def run_c(graph: Graph, inputs: Sequence[Tensor], folder: Path) -> list[Tensor]:
    """The outputs of the graph's C, built with all warnings."""
    options = COutput(name="net", io="float")
    assert not check(graph, options, HOST)
    artifact = emit(graph, options, HOST)
    library = link_shared(
        find_compiler(), artifact.write(folder), folder / "net.so", flags=("-O1", *WARNINGS)
    )
    taken, given = ([p for p in artifact.ports if p.is_input is side] for side in (True, False))
    arrays = [to_memory(x, port.stored) for x, port in zip(inputs, taken, strict=True)]
    results = [np.zeros(p.type.numel, str(p.type.dtype.torch).removeprefix("torch.")) for p in given]
    arena = np.zeros(artifact.plan.arena_bytes // 8 + 2, np.int64)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (*arrays, *results, arena))
    assert ctypes.CDLL(str(library)).net_run(*pointers) == 0
    return [from_memory(result, port.stored) for result, port in zip(results, given, strict=True)]


def in_ulps(wanted: Tensor, got: Tensor) -> float:
    """Largest difference in units of the last place of the largest element; whole numbers must be equal."""
    got = got.reshape(wanted.shape)
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(wanted.to(torch.int64), got.to(torch.int64)) else float("inf")
    if not torch.equal(wanted.isnan(), got.isnan()):
        return float("inf")
    difference = float((wanted.double() - got.double()).abs().nan_to_num(0.0).max())
    return difference / max(float(wanted.abs().max()), 1e-30) / torch.finfo(torch.float32).eps


def in_db(wanted: Tensor, got: Tensor) -> float:
    """Signal-to-noise ratio."""
    noise = float((wanted.double() - got.double().reshape(wanted.shape)).square().sum())
    return float(10 * np.log10(max(float(wanted.double().square().sum()), 1e-30) / max(noise, 1e-30)))


def per_call(calls: Sequence[Call], outputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Outputs of a network of these calls, listed for each."""
    remaining = iter(outputs)
    results = Together(calls)(*(x for call in calls for x in call.operands))
    return [[next(remaining) for _ in made] for made in results]


def shuffled(operands: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Other operands of the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    places = (torch.randperm(x.numel(), generator=generator) for x in operands)
    return tuple(x.reshape(-1)[p].view(x.shape) for x, p in zip(operands, places, strict=True))


@pytest.mark.parametrize("calls", GROUPS, ids=[group[0].name for group in GROUPS])
def test_calls_in_c_equal_torch(
    calls: list[Call], tmp_path: Path, everyday_table: dict[str, list[str]]
) -> None:
    operands = tuple(x for call in calls for x in call.operands)
    network = Together(calls).eval()
    graph = for_c(capture(network, operands).graph)
    found = per_call(calls, run_c(graph, operands, tmp_path))
    errors = {
        call.name: max(map(in_ulps, wanted, got))
        for call, wanted, got in zip(calls, network(*operands), found, strict=True)
    }
    for name, error in errors.items():
        everyday_table.setdefault(name, []).append(f"{error:.1f} ulp")
    assert not {c.name: errors[c.name] for c in calls if errors[c.name] > c.ulps}


def test_there_are_enough_calls() -> None:
    assert len({call.name for call in CALLS}) == len(CALLS) >= AT_LEAST


REALS = [call for call in CALLS if call.int8_db is not None]
REAL_GROUPS = [REALS[i : i + GROUP] for i in range(0, len(REALS), GROUP)]


@pytest.mark.parametrize("calls", REAL_GROUPS, ids=[group[0].name for group in REAL_GROUPS])
def test_calls_quantized_to_int8_are_near_torch(
    calls: list[Call], tmp_path: Path, everyday_table: dict[str, list[str]]
) -> None:
    operands = tuple(x for call in calls for x in call.operands)
    network = Together(calls).eval()
    graph = for_c(capture(network, operands).graph)
    samples = [operands, *(shuffled(operands, seed) for seed in range(7))]
    for options in (CleanOptions(), QuantizeOptions()):
        graph = find_pass(options.pass_name())(graph, options, Context(calibration=samples)).graph
    found = per_call(calls, run_c(graph, operands, tmp_path))
    ratios = {
        call.name: min([in_db(w, g) for w, g in zip(wanted, got, strict=True) if w.is_floating_point()])
        for call, wanted, got in zip(calls, network(*operands), found, strict=True)
        if any(w.is_floating_point() for w in wanted)
    }
    for name, ratio in ratios.items():
        everyday_table.setdefault(name, []).append(f"{ratio:.1f} dB" if ratio < 140 else "float")
    wanted_db = {call.name: call.int8_db or 0.0 for call in calls}
    assert not {name: ratio for name, ratio in ratios.items() if ratio < wanted_db[name]}
