"""Huffman's code in canonical form: code lengths say everything, shorter codes come first, equal lengths in order.

Bits are written from the highest of each byte down. Source: Huffman, 1952; Deflate, RFC 1951, for the canonical form.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


def code_lengths(counts: Sequence[int]) -> list[int]:
    """Bits of each symbol's code, by how often it occurs (> 0); a single symbol has one bit."""
    if len(counts) == 1:
        return [1]
    lengths = [0] * len(counts)
    heap = [(count, symbol, [symbol]) for symbol, count in enumerate(counts)]
    heapify(heap)
    while len(heap) > 1:
        (rare, first, some), (common, second, others) = heappop(heap), heappop(heap)
        for symbol in (*some, *others):
            lengths[symbol] += 1
        heappush(heap, (rare + common, min(first, second), [*some, *others]))
    return lengths


def encoded_bits(counts: Sequence[int], lengths: Sequence[int]) -> int:
    """Bits of all symbols together."""
    return sum(count * length for count, length in zip(counts, lengths, strict=True))


def encode(symbols: Sequence[int], lengths: Sequence[int]) -> bytes:
    """The codes of the symbols in order, the last byte filled up with zeros."""
    codes = _codes(lengths)
    text = "".join(codes[symbol] for symbol in symbols)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def decode(image: bytes, lengths: Sequence[int], *, count: int) -> list[int]:
    """`count` symbols; only how many codes each length has, and the symbols in order of their codes, are needed."""
    order = sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol))
    per_length = [lengths.count(length) for length in range(max(lengths) + 1)]
    bits = iter(f"{int.from_bytes(image, 'big'):0{8 * len(image)}b}")
    symbols = []
    for _ in range(count):
        code = first = index = 0
        for of_this_length in per_length[1:]:
            code |= next(bits) == "1"
            if code - first < of_this_length:
                symbols.append(order[index + code - first])
                break
            index, first = index + of_this_length, (first + of_this_length) << 1
            code <<= 1
    return symbols


def _codes(lengths: Sequence[int]) -> list[str]:
    codes, code, last = [""] * len(lengths), 0, 0
    for symbol in sorted(range(len(lengths)), key=lambda s: (lengths[s], s)):
        code <<= lengths[symbol] - last
        last = lengths[symbol]
        codes[symbol] = f"{code:0{last}b}"
        code += 1
    return codes
