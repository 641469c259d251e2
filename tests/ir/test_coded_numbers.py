"""Reals that are stored as codes of 8 bits and the numbers that decode them."""

import pickle
from copy import deepcopy
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from fxpress.ir import (
    Builder,
    CodedNumbers,
    Encoding,
    Graph,
    Numbers,
    ParseError,
    ShapeError,
    dump,
    long_numbers,
    numbers_of,
    parse,
)
from fxpress.ir.ops.quantize import Dequantize


def magnitudes(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.3


def signed(count: int) -> Tensor:
    signs = torch.rand(count, generator=torch.Generator().manual_seed(1)) < 0.5
    return torch.where(signs, -magnitudes(count), magnitudes(count))


def test_powers_of_two_are_stored_exactly_and_others_as_the_nearest() -> None:
    powers = 2.0 ** torch.arange(-126.0, 128.0, dtype=torch.float64)
    numbers = CodedNumbers.of(powers.float(), "e8m0")
    assert list(numbers) == powers.tolist() and numbers.bytes == 254 and numbers.form == "e8m0"
    assert list(CodedNumbers.of(torch.tensor([0.70, 0.72, 3.0, 1e-45, 3e38]), "e8m0")) == [
        0.5,
        1.0,
        4.0,
        2.0**-126,
        2.0**127,
    ]
    codes = numbers_of(torch.tensor([0, 1, 127, 254], dtype=torch.uint8))
    assert list(CodedNumbers("e8m0", [codes])) == [2.0**-127, 2.0**-126, 1.0, 2.0**127]


@pytest.mark.parametrize(("reals", "bits"), [(magnitudes(1000), 8), (signed(1000), 7)])
def test_double_quantization_has_a_step_for_each_256_codes(reals: Tensor, bits: int) -> None:
    numbers = CodedNumbers.of(reals, "double")
    codes, steps, offset = (part.tensor() for part in numbers.parts)
    assert numbers.bytes == 1000 + 4 * 4 + 4 and float(offset) == float(reals.abs().min())
    assert codes.dtype is (torch.int8 if bits == 7 else torch.uint8)
    for real, code, block, found in zip(reals.tolist(), codes.tolist(), range(1000), numbers, strict=True):
        step = Fraction(float(steps[block // 256]))
        size = Fraction(float(offset)) + (-1 - code if code < 0 else code) * step
        assert found == (-1 if code < 0 else 1) * float(torch.tensor(float(size), dtype=torch.float32))
        assert abs(found - real) <= step * Fraction(51, 100)  # half a step, and the rounding of steps
        assert (found < 0) == (real < 0)


def test_products_of_steps_and_codes_are_exact_so_that_only_the_sum_is_rounded() -> None:
    codes, steps, offset = (part.tensor() for part in CodedNumbers.of(magnitudes(2000), "double").parts)
    spread = steps.repeat_interleave(256)[:2000]
    assert torch.equal((codes * spread).double(), codes.double() * spread.double())
    fused = (codes.double() * spread.double() + offset.double()).float()
    assert torch.equal(fused, codes * spread + offset)


@pytest.mark.parametrize("value", [2.0**-126, 1e-30, 3.0, 1e30])
def test_reals_that_are_all_equal_are_exact(value: float) -> None:
    reals = torch.full((300,), value)
    assert torch.equal(CodedNumbers.of(reals, "double").tensor(), reals)


def test_groups_of_zeros_take_nothing_from_the_resolution_of_others() -> None:
    reals = magnitudes(256)
    reals[::7] = 2.0**-126  # the scale of a group of zeros
    numbers = CodedNumbers.of(reals, "double")
    kept = reals > 2.0**-126
    assert float((numbers.tensor() - reals)[kept].abs().max()) < 0.7 / 255
    assert float(numbers.tensor().min()) >= float(reals[kept].min())


@pytest.mark.parametrize("form", ["e8m0", "double"])
def test_they_are_equal_by_form_and_parts(form: str) -> None:
    numbers = CodedNumbers.of(magnitudes(9), form)
    assert deepcopy(numbers) == numbers and pickle.loads(pickle.dumps(numbers)) == numbers
    assert hash(deepcopy(numbers)) == hash(numbers) and numbers.like(magnitudes(9)) == numbers
    plain = Numbers.of_reals(numbers.tensor())
    assert numbers != plain and plain != numbers and list(plain) == list(numbers)
    assert numbers.digest != plain.digest and repr(numbers).startswith(f"{form}[9](")
    assert numbers[2] == plain[2] and list(numbers[2:4]) == list(plain[2:4])


def test_other_parts_than_those_of_the_form_are_refused() -> None:
    codes = numbers_of(torch.ones(300, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"e8m0 are stored as u8\[300\], not as u8\[300\], u8\[300\]"):
        CodedNumbers("e8m0", [codes, codes])
    with pytest.raises(ShapeError, match=r"double are stored as u8\[300\], f32\[2\], f32\[1\], not as u8"):
        CodedNumbers("double", [codes, numbers_of(torch.ones(1)), numbers_of(torch.ones(1))])
    with pytest.raises(ShapeError, match="unknown form 'half' of numbers; the choices are e8m0, double"):
        CodedNumbers("half", [codes])
    with pytest.raises(ShapeError, match="powers of two, which are positive"):
        CodedNumbers.of(torch.tensor([1.0, -1.0]), "e8m0")
    with pytest.raises(ShapeError, match="a scale must be a finite number"):
        Encoding(CodedNumbers("e8m0", [numbers_of(torch.tensor([255], dtype=torch.uint8))]))


def graph_with(form: str, rows: int) -> Graph:
    encoding = Encoding(CodedNumbers.of(magnitudes(rows), form), bits=4, axis=0)
    builder = Builder()
    codes = torch.ones(rows, 2, dtype=torch.int8)
    return builder.build([builder.add(Dequantize(), builder.constant("w", codes, quantization=encoding))])


@pytest.mark.parametrize("form", ["e8m0", "double"])
@pytest.mark.parametrize("rows", [1, 4, 300, 5000])
def test_the_text_has_form_and_parts(form: str, rows: int) -> None:
    graph = graph_with(form, rows)
    numbers = {name: numbers_of(part.tensor()) for name, part in long_numbers(graph).items()}
    assert len(numbers) == (rows > 4096)
    found = parse(dump(graph), params=graph.params, numbers=numbers)
    assert found == graph and dump(found) == dump(graph)
    (constant,) = found.constants
    assert constant.type.quantization is not None
    assert list(constant.type.quantization.scale) == list(CodedNumbers.of(magnitudes(rows), form))


def test_parts_without_element_types_are_refused_with_their_place() -> None:
    text = dump(graph_with("e8m0", 1)).replace("u8(127,)", "127")
    assert "e8m0(127)" in text
    with pytest.raises(ParseError, match=r"2:\d+: the parts of e8m0 need their element types, as u8\(126"):
        parse(text)
