"""Random augmentation: each kind changes what it applies to, and is refused for anything else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Value
from fxpress.ir.tensor_type import TensorType
from fxpress.passes import PassError
from fxpress.passes.training.augment import augment, check_augmentation
from fxpress.specs import SpecError
from fxpress.specs.options import Augmentation, FinetuneOptions
from fxpress.specs.write import read_values


def chosen(**options: object) -> Augmentation:
    found = read_values(FinetuneOptions, {"augment": options}, name="finetune(...)").augment
    assert found is not None
    return found


def augmented(x: Tensor, **options: object) -> Tensor:
    return augment(x, chosen(**options), torch.Generator().manual_seed(0))


def test_images_are_mirrored_and_moved_with_their_border_repeated() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4).expand(64, 1, 3, 4)
    flipped = augmented(x, flip=True)
    assert {tuple(row) for row in flipped[:, 0, 0].tolist()} == {(0, 1, 2, 3), (3, 2, 1, 0)}
    moved = augmented(x, shift=1)
    assert {tuple(row) for row in moved[:, 0, 0].tolist()} == {
        tuple(start + min(max(i + move, 0), 3) for i in range(4)) for start in (0, 4) for move in (-1, 0, 1)
    }
    assert torch.equal(augmented(x), x)


@settings(deadline=None, max_examples=30)
@given(shape=st.sampled_from([(6,), (6, 2), (1, 6, 2)]), most=st.integers(1, 9), is_integer=st.booleans())
def test_samples_are_shifted_in_time_with_their_border_repeated(
    shape: tuple[int, ...], most: int, is_integer: bool
) -> None:
    axis = {1: 1, 2: 1, 3: 2}[len(shape)]
    steps = torch.arange(6).view([6 if i + 1 == axis else 1 for i in range(len(shape))]).expand(32, *shape)
    x = steps if is_integer else steps.float()
    for options in ({}, {"time_axis": axis}, {"time_axis": axis - x.ndim}):
        moved = augmented(x, time_shift=most, **options)
        assert moved.dtype is x.dtype and moved.shape == x.shape
        rows = moved.movedim(axis, -1).reshape(32, -1, 6)
        for row in rows.tolist():
            assert all(line == row[0] for line in row)
            assert row[0] in [[min(max(i + s, 0), 5) for i in range(6)] for s in range(-most, most + 1)]
    assert len({tuple(row[0]) for row in rows.tolist()}) > 1


@settings(deadline=None, max_examples=20)
@given(decibel=st.integers(1, 40), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_noise_has_the_ratio_to_each_sample(decibel: int, scale: float) -> None:
    x = scale * torch.randn(3, 1, 50, 40, generator=torch.Generator().manual_seed(1))
    noise = augmented(x, noise=f"{decibel} dB") - x
    ratio = 10 * torch.log10(x.flatten(1).var(1) / noise.flatten(1).var(1))
    torch.testing.assert_close(ratio, torch.full((3,), float(decibel)), rtol=0, atol=0.5)


def test_tokens_are_masked() -> None:
    x = torch.arange(1, 2001).view(2, 1000)
    masked = augmented(x, mask="15 %", mask_id=0)
    assert ((masked == 0) | (masked == x)).all()
    assert 0.12 < float((masked == 0).float().mean()) < 0.18


def test_tensors_of_another_kind_are_unchanged() -> None:
    x = torch.randn(4, 7)
    assert augmented(x, flip=True, shift=2, mask="15 %", mask_id=0) is x
    tokens = torch.arange(8).view(2, 4)
    assert augmented(tokens, noise="10 dB") is tokens


@pytest.mark.parametrize(
    ("samples", "labels", "options", "message"),
    [
        (
            {"x": torch.randn(4, 7)},
            None,
            {"shift": 1},
            r"augment.shift: needs an image .*; there is x of nx7",
        ),
        (
            {"x": torch.randn(4)},
            None,
            {"time_shift": 1},
            "augment.time_shift: needs an input with a dimension of time",
        ),
        ({"x": torch.randn(4, 7)}, None, {"time_shift": 1, "time_axis": 2}, "augment.time_shift: needs"),
        ({"x": torch.randn(4, 7)}, None, {"time_shift": 1, "time_axis": 0}, "augment.time_shift: needs"),
        (
            {"x": torch.ones(4, 7).long()},
            None,
            {"noise": "9 dB"},
            "augment.noise: needs an input of real numbers",
        ),
        (
            {"x": torch.randn(4, 7)},
            None,
            {"mask": "15 %", "mask_id": 0},
            "augment.mask: needs an input of integers",
        ),
        (
            {"ids": torch.ones(4, 7).long(), "kinds": torch.ones(4, 7).long()},
            None,
            {"mask": "15 %", "mask_id": 0},
            r"ids and kinds are integers; name the tokens, `inputs: \[ids\]`",
        ),
        ({"x": torch.randn(4, 7)}, None, {"noise": "9 dB", "inputs": ["y"]}, "no input 'y'; there are x"),
        (
            {"x": torch.randn(4, 3, 8, 9)},
            torch.zeros(4, 8, 9),
            {"flip": True},
            "moves positions of x nx3x8x9, which labels of nx8x9 for each position do not follow",
        ),
        (
            {"x": torch.randn(4, 7, 3)},
            torch.zeros(4, 7),
            {"time_shift": 1},
            "labels of nx7 for each position",
        ),
    ],
)
def test_an_augmentation_that_does_not_apply_is_refused(
    samples: dict[str, Tensor], labels: Tensor | None, options: dict[str, object], message: str
) -> None:
    values = [Value(name, TensorType(tuple(x.shape))) for name, x in samples.items()]
    with pytest.raises(PassError, match=message):
        check_augmentation(chosen(**options), values, list(samples.values()), labels)


def test_one_of_several_inputs_is_augmented() -> None:
    ids = torch.ones(4, 7).long()
    values = [Value(name, TensorType((4, 7))) for name in ("ids", "kinds")]
    options = chosen(mask="15 %", mask_id=0, inputs=["ids"])
    check_augmentation(options, values, [ids, ids], torch.zeros(4, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "15 %"}, "`mask` and `mask_id` belong together"),
        ({"mask_id": 3}, "`mask` and `mask_id` belong together"),
        ({"time_axis": 1}, "`time_axis` is the dimension of `time_shift`"),
        ({"noise": 0.1}, "has no unit"),
    ],
)
def test_options_that_say_too_little_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        chosen(**options)
