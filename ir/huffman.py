"""Huffman code in canonical form: lengths define the codes; shorter codes come first, equal lengths in symbol order.

Bits fill each byte from the highest bit down. Package-merge gives the shortest of all prefix codes within a bound on
the length. Sources: Huffman, 1952; Larmore and Hirschberg, A fast algorithm for optimal length-limited Huffman codes,
JACM 1990; Deflate, RFC 1951, for the canonical form.
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 15


def code_lengths(counts: Sequence[int], *, longest: int = _LONGEST) -> list[int]:
    """Code length of each symbol, from its number of occurrences (> 0); a single symbol has one bit.

    `longest` must be large enough to distinguish all symbols.
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
    """Total number of bits of the encoded symbols."""
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
    """Digits 0 and 1 as bytes, padded with zeros to a multiple of `unit` bits."""
    filled = digits + "0" * (-len(digits) % unit)
    return int(filled or "0", 2).to_bytes(len(filled) // 8, "big")


def encode(symbols: Sequence[int], lengths: Sequence[int]) -> bytes:
    """The codes of the symbols in order, with the last byte padded with zeros."""
    found = codes(lengths)
    return pack_bits("".join(found[symbol] for symbol in symbols))


def decode(image: bytes, lengths: Sequence[int], *, count: int) -> list[int]:
    """Decodes `count` symbols; needs only the number of codes of each length and the symbols in the order of their
    codes.
    """
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
