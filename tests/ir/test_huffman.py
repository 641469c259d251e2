"""Huffman coding: decoding returns the written bytes, and no prefix code is shorter."""

from __future__ import annotations

from collections import Counter
from math import log2

from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir.huffman import code_lengths, decode, encode, encoded_bits


@given(st.lists(st.integers(0, 30), min_size=1, max_size=400))
def test_what_is_encoded_comes_back(data: list[int]) -> None:
    found = sorted(set(data))
    symbols = [found.index(value) for value in data]
    counts = [symbols.count(s) for s in range(len(found))]
    lengths = code_lengths(counts)
    image = encode(symbols, lengths)
    assert len(image) == (encoded_bits(counts, lengths) + 7) // 8
    assert decode(image, lengths, count=len(symbols)) == symbols


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=60))
def test_the_code_is_complete_and_within_a_bit_of_the_entropy(counts: list[int]) -> None:
    lengths = code_lengths(counts)
    assert sum(2.0**-length for length in lengths) == 1.0
    total = sum(counts)
    entropy = -sum(c / total * log2(c / total) for c in counts)
    mean = encoded_bits(counts, lengths) / total
    assert entropy - 1e-9 <= mean < entropy + 1


def test_codes_are_canonical() -> None:
    lengths = code_lengths([45, 13, 12, 16, 9, 5])
    assert sorted(Counter(lengths).items()) == [(1, 1), (3, 3), (4, 2)]
    assert encode([0], lengths) == b"\x00"
    assert encode([4, 5], lengths) == b"\xef"


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=30), st.integers(5, 8))
def test_a_bound_on_the_length_costs_the_least_that_it_can(counts: list[int], longest: int) -> None:
    free, bounded = code_lengths(counts), code_lengths(counts, longest=longest)
    assert max(bounded) <= longest
    assert sum(2.0**-length for length in bounded) == 1.0
    assert encoded_bits(counts, free) <= encoded_bits(counts, bounded)
    if max(free) <= longest:
        assert encoded_bits(counts, free) == encoded_bits(counts, bounded)


def test_rare_symbols_share_the_bits_that_a_bound_leaves() -> None:
    counts = [1, 1, 2, 4, 8, 16, 32]
    assert code_lengths(counts) == [6, 6, 5, 4, 3, 2, 1]
    assert code_lengths(counts, longest=4) == [4, 4, 4, 4, 3, 3, 1]
