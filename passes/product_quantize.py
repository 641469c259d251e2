"""The pass `product_quantize`: blocks of consecutive weights of a layer share the codewords of a codebook.

    minimize   sum over blocks v of (v - c)^T G (v - c),   c the codeword of v, G = E[x x^T]

x are the inputs that blocks are multiplied with, so that the error of the layer's output is minimized, not that of the
weights. With G = L L^T this is k-means of the blocks L^T v. The layer reads its weight from the codes (one byte for
each block) and the codebook, both constants, through a lookup and a reshape; the codebook is an ordinary constant that
`finetune` trains. Sources: Stock et al., And the Bit Goes Down, ICLR 2020; Jegou et al., Product quantization for
nearest neighbor search, PAMI 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from ..ir import Builder, Graph, Node, Value, rewrite, run
from ..ir.interpret import at_call
from ..ir.ops.convert import Cast
from ..ir.ops.embedding import Embedding
from ..ir.ops.layer import Layer
from ..ir.ops.shape import Reshape
from ..specs.options import ProductQuantizeOptions
from .base import Context, PassResult, register
from .calibration.calibrate import Batch, check_samples
from .errors import PassError
from .quantize.layer_rows import count_places, unfold
from .report import Cell, Decision, PassReport, Table
from .weight_only.groupwise import nearest_group_size
from .weighted_layers import is_layer

_BLOCKS_PER_CODEWORD = 4
_PLACES = 64  # output positions of a sample that are read for the moments
_DAMPING = 0.01  # of the mean of the diagonal of G
_PART = 1 << 14  # blocks compared with all codewords at a time
_COLUMNS = ("weight", "module", "block", "codewords", "bytes_before", "bytes_after", "relative_error")


@dataclass(frozen=True)
class Codebook:
    """Codes [blocks] of a weight, and codewords [codewords, block]."""

    codes: Tensor
    codewords: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of codes and codewords."""
        return self.codes.numel() + self.codewords.numel() * self.codewords.element_size()

    def weight(self, shape: Sequence[int]) -> Tensor:
        """The weight that the codes represent."""
        return self.codewords[self.codes.long()].reshape(tuple(shape))


@dataclass
class _Moments:
    """Second moments of the inputs of a block, summed over samples."""

    block: int
    total: Tensor = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.block, self.block, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Adds inputs [groups, positions, k]."""
        blocks = rows.reshape(-1, self.block).double()
        self.total += blocks.mT @ blocks
        self.count += len(blocks)

    def root(self) -> Tensor:
        """L with L L^T = G, damped; the unit matrix without inputs."""
        mean = self.total / max(self.count, 1)
        size = float(mean.diagonal().mean())
        unit = torch.eye(self.block, dtype=torch.float64)
        return torch.linalg.cholesky(mean + _DAMPING * size * unit) if size > 0 else unit


@register(ProductQuantizeOptions)
def product_quantize(graph: Graph, options: ProductQuantizeOptions, context: Context) -> PassResult:
    """The graph with codebooks in place of weights; PassError if no layer has a float weight of two dimensions."""
    readers: dict[str, Node] = {}
    for node in graph.nodes:
        if is_layer(node.op) and _is_float_matrix(graph, node.operand("weight")):
            readers.setdefault(node.operand("weight").name, node)
    if not readers:
        raise PassError("no convolution or linear layer has a constant float weight")
    sizes = {name: _block_size(node, options, context) for name, node in readers.items()}
    moments = _second_moments(graph, readers, sizes, context.calibration[: options.samples])
    found: dict[str, Codebook] = {}
    decisions, rows = list[Decision](), list[tuple[Cell, ...]]()
    for name, node in readers.items():
        value, size = node.operand("weight"), sizes[name]
        before, reason = value.type.storage_bytes, "stays float: the spec keeps it"
        if size is not None:
            weight = graph.tensor(value)
            codebook = share_blocks(weight, size, moments[name].root(), options)
            reason = f"stays float: its codebook needs {codebook.bytes:,} bytes, the weight {before:,}"
            if codebook.bytes < before:
                found[name] = codebook
                error = float(
                    (codebook.weight(weight.shape) - weight).norm() / weight.norm().clamp(min=1e-30)
                )
                count = len(codebook.codewords)
                rows.append((name, node.source.module, size, count, before, codebook.bytes, error))
                reason = f"{count} codewords for blocks of {size} weights"
        decisions.append(Decision("product_quantize", name, node.source, name in found, reason))
    after = _with_codebooks(graph, found)
    table = Table("weights", _COLUMNS, tuple(rows))
    return PassResult(
        after, PassReport("product_quantize", tuple(decisions), (table, _summary(graph, after)))
    )


def share_blocks(weight: Tensor, block: int, root: Tensor, options: ProductQuantizeOptions) -> Codebook:
    """Codes and codewords of a weight [out, ...], for errors weighted by `root` (L with L L^T = G)."""
    blocks = weight.reshape(-1, block)
    count = max(1, min(options.codewords, len(blocks) // _BLOCKS_PER_CODEWORD))
    scaled = (blocks.double() @ root).float()
    generator = torch.Generator().manual_seed(options.seed)
    centres = scaled[torch.randperm(len(blocks), generator=generator)[:count]]
    codes, errors = _nearest(scaled, centres)
    for _ in range(options.iterations):
        sums = torch.zeros_like(centres).index_add_(0, codes, scaled)
        members = torch.bincount(codes, minlength=count)
        centres = sums / members.clamp(min=1)[:, None]
        empty = (members == 0).nonzero()[:, 0]  # take the places of the blocks with the largest errors
        centres[empty] = scaled[errors.topk(len(empty)).indices]
        codes, errors = _nearest(scaled, centres)
    sums = torch.zeros(count, block, dtype=torch.float64).index_add_(0, codes, blocks.double())
    members = torch.bincount(codes, minlength=count).clamp(min=1)
    return Codebook(codes.to(torch.uint8), (sums / members[:, None]).to(weight.dtype))


def _nearest(blocks: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest centre of each block, and the squared distance."""
    codes, errors = [], []
    for part in blocks.split(_PART):
        error, code = torch.cdist(part, centres).min(1)
        codes.append(code)
        errors.append(error.square())
    return torch.cat(codes), torch.cat(errors)


def _is_float_matrix(graph: Graph, value: Value) -> bool:
    is_float = value.type.dtype.is_floating and not value.type.is_quantized
    return graph.is_constant(value) and is_float and value.type.rank > 1 and value.type.numel > 0


def _block_size(node: Node, options: ProductQuantizeOptions, context: Context) -> int | None:
    """Block size of the weight of a layer; None for one that stays float."""
    module = node.source.module
    matching = [size for pattern, size in options.layers.items() if context.selects(pattern, module)]
    wanted = matching[-1] if matching else options.block
    if wanted == "float32":
        return None
    size = nearest_group_size(prod(node.operand("weight").type.shape[1:]), wanted)
    return size if size > 1 else None


def _second_moments(
    graph: Graph, readers: Mapping[str, Node], sizes: Mapping[str, int | None], samples: Sequence[Batch]
) -> dict[str, _Moments]:
    """Second moments of the inputs of the blocks of each weight.

    Blocks of a transposed convolution have none, as their weights are of several outputs.
    """
    check_samples(graph, samples)
    moments = {name: _Moments(size) for name, size in sizes.items() if size is not None}
    read = [(node, name) for name, node in readers.items() if name in moments and _reads_rows(node.op)]

    def observe(value: Value, tensor: Tensor) -> None:
        for node, name in read:
            if node.operand("x").name == value.name:
                moments[name].add(_rows_of(node, tensor))

    with torch.no_grad():
        for sample in samples:
            for value, tensor in zip(graph.inputs, sample, strict=True):
                observe(value, tensor)
            run(at_call(graph, sample), sample, observe=observe)
    return moments


def _reads_rows(op: object) -> bool:
    return isinstance(op, Layer) and op.out_axis == 0


def _rows_of(node: Node, x: Tensor) -> Tensor:
    """Inputs of a layer at evenly spaced output positions, [groups, positions, k]."""
    op = node.op
    assert is_layer(op)
    kernel, output = node.operand("weight").type.shape[2:], node.output.type.shape
    available = prod(x.shape[:-1]) if not kernel else count_places(op, torch.empty(output, device="meta"))
    places = torch.arange(0, available, max(1, available // _PLACES))
    return unfold(op, x, kernel, output, places)


def _with_codebooks(graph: Graph, found: Mapping[str, Codebook]) -> Graph:
    """The graph with lookups in place of these weights."""
    real: dict[str, Value] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        for value in (v for v in node.operands if v.name in found and v.name not in real):
            builder.release(value.name)
            codes = builder.constant(f"{value.name}.codes", found[value.name].codes)
            codewords = builder.constant(f"{value.name}.codewords", found[value.name].codewords)
            indices = builder.add(Cast("i64"), codes, source=node.source)
            blocks = builder.add(Embedding(), indices, codewords, source=node.source)
            real[value.name] = builder.add(Reshape(value.type.shape), blocks, source=node.source)
        kept = [old and real.get(old.name, new) for old, new in zip(node.inputs, operands, strict=True)]
        return builder.keep(node, kept)

    return rewrite(graph, visit)


def _summary(before: Graph, after: Graph) -> Table:
    """Bytes of all constants."""
    sizes = [sum(value.type.storage_bytes for value in graph.constants) for graph in (before, after)]
    rows = (("constant_bytes_before", sizes[0]), ("constant_bytes_after", sizes[1]))
    return Table("summary", ("figure", "value"), rows)
