"""Calibration samples that a spec leaves out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.data import Samples
from fxpress.ir import dump

ALL = "data.calibration.samples=null"


def test_excluded_samples_are_as_if_the_file_had_not_got_them(project: Path) -> None:
    arrays = dict(np.load(project / "data.npz"))
    arrays["x"][5] *= 1000
    np.savez(project / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's types know `allow_pickle` only
    excluded = compile_model(project / "net.yaml", overrides=[ALL, "data.calibration.exclude=[0, 5]"]).graph
    np.savez(project / "data.npz", x=np.delete(arrays["x"], [0, 5], 0), y=np.delete(arrays["y"], [0, 5], 0))
    without = compile_model(project / "net.yaml", overrides=[ALL]).graph
    assert dump(excluded) == dump(without)
    assert all(torch.equal(excluded.params[name], tensor) for name, tensor in without.params.items())


def test_a_position_beyond_the_samples_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match=r"`exclude` names position 24 of 24 samples; positions count from 0"):
        compile_model(project / "net.yaml", overrides=[ALL, "data.calibration.exclude=[1, 24]"])


def test_no_sample_may_be_left_out_of_all(project: Path) -> None:
    with pytest.raises(UserError, match="0 samples are fewer than the 1 that the model takes at once"):
        compile_model(project / "net.yaml", overrides=[ALL, f"data.calibration.exclude={list(range(24))}"])


def numbered(count: int) -> torch.Tensor:
    return torch.arange(float(count))[:, None]


def test_labels_and_inputs_lose_the_same_samples() -> None:
    left = Samples((numbered(4), numbered(4)), torch.arange(4)).without({1})
    assert [x[:, 0].tolist() for x in left.inputs] == [[0, 2, 3]] * 2
    assert left.labels is not None and left.labels.tolist() == [0, 2, 3] and len(left) == 3


def test_an_input_that_is_stored_whole_loses_its_calls_with_all_their_samples() -> None:
    left = Samples((numbered(6), numbered(3)), axes=(0, None)).without({3})
    assert [x[:, 0].tolist() for x in left.inputs] == [[0, 1, 4, 5], [0, 2]]


def test_of_a_model_with_states_sequences_are_left_out() -> None:
    left = Samples((numbered(6), numbered(3)), states={1: "h"}, steps=2).without({1})
    assert [x[:, 0].tolist() for x in left.inputs] == [[0, 1, 4, 5], [0, 2]]
