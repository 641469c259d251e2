"""Files of weights for models with tied parameters: one name of each suffices, and contradictions are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from fxpress.compiler import UserError
from fxpress.compiler.loading import load_weights


class Tied(nn.Module):
    """A decoder that shares the weight of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.table.weight


def test_a_file_with_one_name_of_a_tied_parameter_loads(tmp_path: Path) -> None:
    trained, model = Tied(), Tied()
    save_model(trained, str(tmp_path / "w.safetensors"))
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.out.weight, trained.table.weight)
    assert model.out.weight is model.table.weight


def test_a_file_with_no_name_of_a_tied_parameter_lacks_both(tmp_path: Path) -> None:
    save_file({"other": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"lacks 2 tensors: out\.weight, table\.weight; "):
        load_weights(Tied(), tmp_path / "w.safetensors")


def test_tied_parameters_with_different_values_are_refused(tmp_path: Path) -> None:
    tensors = {"table.weight": torch.zeros(5, 4), "out.weight": torch.ones(5, 4)}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"table\.weight and out\.weight differ.*\[M118\]"):
        load_weights(Tied(), tmp_path / "w.safetensors")
