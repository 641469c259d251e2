"""Views distinguished by their elements."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxpress.compiler.frontend.views import (
    Boxed,
    Permuted,
    Reshaped,
    Scattered,
    numbered,
    region,
    region_shown,
)

SHAPE = (2, 3, 4)


def test_a_reshape_shows_all_elements_in_order() -> None:
    assert region(numbered(SHAPE).reshape(6, 4), SHAPE) == Reshaped()


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
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


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda t: t[:, 1:],
    "steps": lambda t: t[:, ::2, 1::3],
    "selection": lambda t: t[1, :, 2],
    "one element": lambda t: t[1, 2, 3],
    "reshape": lambda t: t.reshape(6, 4),
    "permutation": lambda t: t.permute(2, 0, 1),
    "part of a reshape": lambda t: t.reshape(6, 4)[1:3],
    "transposed part": lambda t: t[:, 1:].transpose(0, 2),
    "split": lambda t: t.split(2, 2)[1],
    "diagonal": lambda t: t.diagonal(0, 1, 2),
    "new dimensions": lambda t: t[:, None, 1, :, None],
    "merged dimensions": lambda t: t[:, 1:].flatten(1),
    "expansion": lambda t: t[:1].expand(2, 3, 4),
    "nothing": lambda t: t[:, :0],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("shape", [SHAPE, (2, 1, 4), (1, 3, 4)])
def test_strides_tell_the_same_as_the_numbers_written_down(name: str, shape: tuple[int, ...]) -> None:
    try:
        numbers = VIEWS[name](numbered(shape))
    except (IndexError, RuntimeError):
        pytest.skip("no such view of this shape")

    found, expected = region_shown(VIEWS[name], shape), region(numbers, shape)

    assert _listed(found, shape) == _listed(expected, shape) == _distinct(numbers)


def _listed(found: object, shape: tuple[int, ...]) -> list[int] | None:
    """The numbers that a region contains, in order."""
    match found:
        case Reshaped():
            return numbered(shape).flatten().tolist()
        case Permuted(order):
            return numbered(shape).permute(order).flatten().tolist()
        case Boxed(ranges):
            return numbered(shape)[tuple(slice(*r) for r in ranges)].flatten().tolist()
        case Scattered(indices):
            return indices.flatten().tolist()
    return None


def _distinct(numbers: Tensor) -> list[int] | None:
    listed = numbers.flatten().tolist()
    return listed if len(set(listed)) == len(listed) else None
