"""Prelude of emitted quantized modules with embeddings; the source is copied into the emitted file."""

import torch
from torch import Tensor, nn


class QuantizedEmbedding(nn.Module):
    """`nn.Embedding` of integers with one scale and zero point, `grid`; its rows are bytes, the integers plus 128."""

    weight: Tensor

    def __init__(self, rows: int, columns: int, *, grid: tuple[float, int]) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8))

    def real_weight(self) -> Tensor:
        """The dequantized weight."""
        scale, zero_point = self.grid
        return (self.weight.to(torch.float32) - zero_point) * scale

    def forward(self, indices: Tensor) -> Tensor:
        rows = nn.functional.embedding(indices, self.weight)
        return (rows.to(torch.int16) + 128).to(torch.uint8)
