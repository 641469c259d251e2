"""Huffman's code in canonical form: code lengths say everything, shorter codes come first, equal lengths in order.

Bits are written from the highest of each byte down. No code is longer than a bound, by package-merge: of all prefix
codes within the bound it is the shortest. Sources: Huffman, 1952; Larmore and Hirschberg, A fast algorithm for optimal
length-limited Huffman codes, JACM 1990; Deflate, RFC 1951, for the canonical form.
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 15


def code_lengths(counts: Sequence[int], *, longest: int = _LONGEST) -> list[int]:
    """Bits of each symbol's code, by how often it occurs (> 0); a single symbol has one bit.

    `longest` bits must be enough to tell the symbols apart.
    """
    if len(counts) == 1:
        return [1]
    assert len(counts) <= 1 << longest, f"{len(counts)} symbols in {longest} bits"
    leaves: list[tuple[int, tuple[int, ...]]] = sorted(
        (count, (symbol,)) for symbol, count in enumerate(counts)
    )
    level = leaves
    for _ in range(longest - 1):
        packages = [
            (a + b, some + others) for (a, some), (b, others) in zip(level[::2], level[1::2], strict=False)
        ]
        level = sorted(leaves + packages)
    lengths = [0] * len(counts)
    for _, symbols in level[: 2 * len(counts) - 2]:
        for symbol in symbols:
            lengths[symbol] += 1
    return lengths


def encoded_bits(counts: Sequence[int], lengths: Sequence[int]) -> int:
    """Bits of all symbols together."""
    return sum(count * length for count, length in zip(counts, lengths, strict=True))


def canonical_order(lengths: Sequence[int]) -> list[int]:
    """The symbols in order of their codes."""
    return sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol))


def codes(lengths: Sequence[int]) -> list[str]:
    """The code of each symbol, in digits 0 and 1."""
    found, code, last = [""] * len(lengths), 0, 0
    for symbol in canonical_order(lengths):
        code <<= lengths[symbol] - last
        last = lengths[symbol]
        found[symbol] = f"{code:0{last}b}"
        code += 1
    return found


def pack_bits(digits: str, *, unit: int = 8) -> bytes:
    """Digits 0 and 1 as bytes, filled up with zeros to a multiple of `unit` bits."""
    filled = digits + "0" * (-len(digits) % unit)
    return int(filled or "0", 2).to_bytes(len(filled) // 8, "big")


def encode(symbols: Sequence[int], lengths: Sequence[int]) -> bytes:
    """The codes of the symbols in order, the last byte filled up with zeros."""
    found = codes(lengths)
    return pack_bits("".join(found[symbol] for symbol in symbols))


def decode(image: bytes, lengths: Sequence[int], *, count: int) -> list[int]:
    """`count` symbols; only how many codes each length has, and the symbols in order of their codes, are needed."""
    order = canonical_order(lengths)
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
