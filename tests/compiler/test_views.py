"""Views told apart by the elements they show."""

import pytest
import torch
from torch import Tensor

from fxpress.compiler.views import Boxed, Permuted, Reshaped, Scattered, numbered, region

SHAPE = (2, 3, 4)


def test_a_reshape_shows_all_elements_in_order() -> None:
    assert region(numbered(SHAPE).reshape(6, 4), SHAPE) == Reshaped()


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_a_permutation_is_known_by_its_order(order: tuple[int, ...]) -> None:
    assert region(numbered(SHAPE).permute(order), SHAPE) == Permuted(order)


def test_a_slice_of_a_slice_is_a_box() -> None:
    numbers = numbered(SHAPE)[:, 1:][..., ::2]

    assert region(numbers, SHAPE) == Boxed(((0, 2, 1), (1, 3, 1), (0, 4, 2)))


def test_a_selected_row_is_a_box() -> None:
    assert region(numbered(SHAPE)[1], SHAPE) == Boxed(((1, 2, 1), (0, 3, 1), (0, 4, 1)))


@pytest.mark.parametrize(
    "numbers",
    [numbered(SHAPE).diagonal(0, 1, 2), numbered(SHAPE)[:, 1:].transpose(0, 2), numbered(SHAPE).flip(0)],
)
def test_any_other_arrangement_is_listed_element_by_element(numbers: Tensor) -> None:
    found = region(numbers, SHAPE)

    assert isinstance(found, Scattered)
    assert torch.equal(found.indices, numbers)


def test_a_view_that_shows_an_element_twice_has_no_region() -> None:
    assert region(numbered((1, 4)).expand(3, 4), (1, 4)) is None


def test_a_view_of_nothing_shows_nothing() -> None:
    assert region(numbered((0, 3)), (0, 3)) == Reshaped()
