"""Arrays of numbers in types."""

import pickle
from copy import deepcopy

import pytest
import torch

from fxpress.ir import DType, Encoding, Numbers, ShapeError, TensorType


def test_numbers_are_equal_by_element_type_and_elements() -> None:
    one = Numbers.of_reals((0.5, 0.25))
    assert one == Numbers.of_reals(torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert hash(one) == hash(Numbers.of_reals([0.5, 0.25]))
    assert one != Numbers.of_reals(torch.tensor([0.5, 0.25]))
    assert one != Numbers.of_reals((0.5, 0.125)) and one != (0.5, 0.25)
    assert one.digest != Numbers.of_reals(torch.tensor([0.5, 0.25])).digest


def test_numbers_read_as_a_sequence_of_python_numbers() -> None:
    numbers = Numbers.of_integers((3, -4, 5))
    assert list(numbers) == [3, -4, 5] and numbers[1] == -4 and type(numbers[1]) is int
    assert list(numbers[1:]) == [-4, 5] and len(numbers) == 3
    assert repr(Numbers.of_reals(range(9))) == "f64[9](0.0, 1.0, 2.0, 3.0, ...)"


def test_numbers_are_a_copy_that_nobody_writes_to() -> None:
    tensor = torch.ones(2)
    numbers = Numbers.of_reals(tensor)
    tensor.zero_()
    numbers.tensor().zero_()
    assert list(numbers) == [1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        numbers.array[0] = 2.0


def test_bfloat16_is_kept_exactly() -> None:
    tensor = torch.linspace(0.1, 1, 50).bfloat16()
    numbers = Numbers.of_reals(tensor)
    assert numbers.dtype is DType.BF16 and numbers.bytes == 100
    assert torch.equal(numbers.tensor(), tensor)


def test_copies_and_pickles_are_equal() -> None:
    numbers = Numbers.of_reals(torch.rand(5))
    assert deepcopy(numbers) == numbers and pickle.loads(pickle.dumps(numbers)) == numbers


def test_reals_are_no_integers() -> None:
    with pytest.raises(ShapeError, match="are no integers"):
        Numbers.of_integers((1, 2.5))


def test_millions_of_scales_are_one_array_and_hashed_once() -> None:
    encoding = Encoding(torch.rand(4096 * 344) + 0.5, bits=4, axis=0, group_size=32)
    type = TensorType((4096, 11008)).quantized(encoding)
    assert encoding.scale.bytes == 4 * 4096 * 344
    assert hash(type) == hash(type) and "digest" in vars(encoding.scale)
    assert type.storage_bytes + encoding.parameter_bytes == 4096 * 11008 // 2 + 4 * 4096 * 344
