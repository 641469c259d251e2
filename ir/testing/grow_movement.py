"""Growth by data movement and by conversions between reals and integers."""

from __future__ import annotations

import torch

from ..element_type import DType
from ..encoding import Encoding
from ..ops.call import TorchCall
from ..ops.embedding import Embedding, Take
from ..ops.pad import Pad
from ..ops.put import IndexCopy
from ..ops.quantize import Dequantize, FakeQuantizePerToken, OffsetBinary, Quantize, Requantize
from ..ops.reorder import Flip, Roll, Tile
from ..ops.resize import ResizeLinear, ResizeNearest
from ..ops.shape import Copy, Expand, Permute, Reshape
from ..ops.slicing import Concat, Select, Slice, Split
from ..tensor_type import TensorType, Value
from .growth import Growth, Step, grows


@grows("reshape")
def grow_reshape(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a reshape: flattens all but the batch, splits the last dimension, adds one, or flattens everything."""
    if not x.type.rank:
        return None
    *leading, last = x.type.shape
    half = (2, last // 2) if last % 2 == 0 else (1, last)
    shapes = [(x.type.shape[0], -1), (*leading, *half), (1, *x.type.shape), (-1,)]
    return g.add(Reshape(step.pick(0, shapes)), x)


@grows("permute")
def grow_permute(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a rotation of the dimensions, or a swap of the last two."""
    rank = x.type.rank
    if rank < 2:
        return None
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    rotated = (0, *range(2, rank), 1)
    return g.add(Permute(step.pick(0, [swapped, rotated, tuple(reversed(range(rank)))])), x)


@grows("expand")
def grow_expand(g: Growth, x: Value, step: Step) -> Value:
    """Adds an expand: a new leading dimension, and dimensions of size 1 repeated twice."""
    sizes = tuple(2 if n == 1 else -1 for n in x.type.shape)
    return g.add(Expand(step.pick(0, [(2, *sizes), sizes])), x)


@grows("copy")
def grow_copy(g: Growth, x: Value, step: Step) -> Value:
    """Adds a copy."""
    return g.add(Copy(), x)


@grows("slice")
def grow_slice(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a slice of channels or another dimension: from the front, to the end, or every second element."""
    if not x.type.rank:
        return None
    axis = step.pick(0, [x.type.rank - 1, min(1, x.type.rank - 1)])
    n = x.type.shape[axis]
    return g.add(
        step.pick(1, [Slice(axis, 0, max(1, n // 2)), Slice(axis, n // 2), Slice(axis, 0, None, 2)]), x
    )


@grows("select")
def grow_select(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a selection of an element of any dimension but the first."""
    if x.type.rank < 2:
        return None
    axis = 1 + step.digits[0] % (x.type.rank - 1)
    return g.add(Select(axis, step.digits[1] % x.type.shape[axis]), x)


@grows("split")
def grow_split(g: Growth, x: Value, step: Step) -> tuple[Value, ...] | None:
    """Splits into two parts, of equal size if possible."""
    if not x.type.rank:
        return None
    axis = step.pick(0, [min(1, x.type.rank - 1), x.type.rank - 1])
    n = x.type.shape[axis]
    return g.add_many(Split(axis, (n // 2, n - n // 2)), x) if n > 1 else None


@grows("concat")
def grow_concat(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a concatenation of two operands, perhaps the same, or of three with a constant among them."""
    if not x.type.rank:
        return None
    operands = [x, g.partner(x, step)]
    if step.digits[0] % 3 == 2:
        operands.insert(1, g.constant(*x.type.shape))
    return g.add(Concat(step.pick(1, [min(1, x.type.rank - 1), x.type.rank - 1])), *operands)


@grows("flip")
def grow_flip(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a flip of the last dimension, or of all."""
    if not x.type.rank:
        return None
    return g.add(Flip(step.pick(0, [(x.type.rank - 1,), tuple(range(x.type.rank))])), x)


@grows("roll")
def grow_roll(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a roll by 1 or by -2."""
    return g.add(Roll((x.type.rank - 1,), (step.pick(0, [1, -2]),)), x) if x.type.rank else None


@grows("tile")
def grow_tile(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a repetition: twice along the last dimension, or as a new first one."""
    if not x.type.rank:
        return None
    ones = (1,) * (x.type.rank - 1)
    return g.add(Tile(step.pick(0, [(*ones, 2), (2, *ones, 1)])), x)


@grows("pad")
def grow_pad(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a padding of any mode, on one or two dimensions, different before and after; negative numbers cut."""
    if x.type.rank < 2:
        return None
    mode = step.pick(0, ["constant", "constant", "reflect", "replicate", "circular"])
    amounts = step.pick(1, [(1, 1), (1, 1, 1, 1), (0, 1), (2, 0, 0, 1), (-1, 1)])
    sizes = x.type.shape[-len(amounts) // 2 :]
    if min(sizes) <= max(amounts) or (mode != "constant" and min(amounts) < 0):
        return None
    return g.add(Pad(amounts, mode, step.pick(2, [0.0, 0.5]) if mode == "constant" else 0.0), x)


@grows("resize_nearest")
def grow_resize_nearest(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a nearest resize, by a factor or to a size, up or down."""
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    ops = [ResizeNearest(factor=(2.0,) * spatial), ResizeNearest(size=(3,) * spatial)]
    return g.add(step.pick(0, ops), x)


@grows("resize_linear")
def grow_resize_linear(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a linear resize with either rule for corners, by factors or to sizes."""
    spatial = x.type.rank - 2
    if spatial not in (1, 2):
        return None
    corners = step.pick(1, [False, True])
    ops = [
        ResizeLinear(factor=(2.0,) * spatial, align_corners=corners),
        ResizeLinear(size=(3,) * spatial, align_corners=corners),
        ResizeLinear(factor=(1.5,) * spatial, align_corners=corners),
    ]
    return g.add(step.pick(0, ops), x)


@grows("embedding")
def grow_embedding(g: Growth, x: Value, step: Step) -> Value:
    """Adds an embedding whose indices are a new graph input."""
    indices = g.input(TensorType(step.pick(0, [(2, 3), (4,), ()]), step.pick(1, [DType.I64, DType.I32])))
    return g.add(Embedding(), indices, g.weight(step, 1 + step.digits[2], 4))


@grows("take")
def grow_take(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a lookup of elements of the last or second dimension, by indices of rank 1 or 2."""
    if not x.type.rank:
        return None
    axis = step.pick(0, [x.type.rank - 1, min(1, x.type.rank - 1)])
    chosen = torch.tensor(step.pick(1, [[0], [-1, 0], [[0, 0], [-1, 0]]]))
    return g.add(Take(axis), x, g.builder.constant("indices", chosen))


@grows("index_copy")
def grow_index_copy(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a copy of one or two elements of a dimension, indexed from the front or the end."""
    if not x.type.rank:
        return None
    axis = step.digits[0] % x.type.rank
    if x.type.shape[axis] < 2:
        return None
    indices = torch.tensor(step.pick(1, [[0], [-1, 0]]))
    part = g.add(Slice(axis, 0, len(indices)), x) if len(indices) < x.type.shape[axis] else x
    op = IndexCopy(axis, wraps=bool((indices < 0).any()))
    return g.add(op, x, g.builder.constant("indices", indices), part)


@grows("quantize", "dequantize")
def grow_quantize(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a quantization and a dequantization."""
    if x.type.dtype is not DType.F32:
        return None
    encoding = step.pick(0, [Encoding((0.05,), (3,)), Encoding((0.001,), (-200,), 16)])
    return g.add(Dequantize(), g.builder.add(Quantize(), x, quantization=encoding))


@grows("fake_quantize_per_token")
def grow_fake_quantize_per_token(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a fake quantization with a scale for each row."""
    if not x.type.rank or x.type.dtype is not DType.F32:
        return None
    return g.add(FakeQuantizePerToken(), x)


@grows("requantize")
def grow_requantize(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a requantization to another encoding, finer or coarser."""
    if x.type.dtype is not DType.F32:
        return None
    integers = g.builder.add(Quantize(), x, quantization=Encoding((0.05,), (3,)))
    encoding = Encoding((step.pick(0, [0.1, 0.02]),), (-5,))
    return g.add(Dequantize(), g.builder.add(Requantize(), integers, quantization=encoding))


@grows("offset_binary")
def grow_offset_binary(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a conversion to offset binary and back."""
    if x.type.dtype is not DType.F32:
        return None
    encoding = Encoding((0.05,), (step.pick(0, [3, -128]),))
    stored = g.builder.add(OffsetBinary(), g.builder.add(Quantize(), x, quantization=encoding))
    return g.add(Dequantize(), g.builder.add(OffsetBinary(), stored, quantization=encoding))


@grows("torch_call")
def grow_torch_call(g: Growth, x: Value, step: Step) -> Value:
    """Adds a call that has no operator in the IR."""
    return g.add(TorchCall("aten.tan.default(x0)"), x)
