"""Byte-pair encoding of the stories models: the adjacent pair whose joined piece scores highest is joined first."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

BEGIN, FIRST_BYTE = 1, 3


@dataclass(frozen=True)
class Tokenizer:
    """Pieces with their numbers and scores. Numbers 3 to 258 are the 256 bytes."""

    numbers: dict[bytes, int]
    scores: dict[bytes, float]

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """From an .npz with `piece_bytes`, `piece_offset` and `score`."""
        with np.load(path) as arrays:
            text, offsets = arrays["piece_bytes"].tobytes(), arrays["piece_offset"].tolist()
            scores = arrays["score"].tolist()
        pieces = [text[start:end] for start, end in pairwise(offsets)]
        ordinary = list(enumerate(pieces))[FIRST_BYTE + 256 :]
        return Tokenizer({p: i for i, p in ordinary}, {p: scores[i] for i, p in ordinary})

    def encode(self, text: str) -> list[int]:
        """The numbers of the pieces of one line of text, which starts with a space."""
        pieces = [character.encode() for character in f" {text}"]
        while True:
            joined = [a + b for a, b in pairwise(pieces)]
            best = max(range(len(joined)), key=lambda i: self.scores.get(joined[i], -1e30), default=None)
            if best is None or joined[best] not in self.scores:
                return [number for piece in pieces for number in self._of(piece)]
            pieces[best : best + 2] = [joined[best]]

    def _of(self, piece: bytes) -> list[int]:
        return [self.numbers[piece]] if piece in self.numbers else [FIRST_BYTE + byte for byte in piece]
