"""Safetensors files: read lazily, from shards too, and written as the reference implementation writes them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save, save_file

from fxpress.ir import Params, ShapeError
from fxpress.ir.tensor_files import open_tensors, tensor_file, write_tensors

ELEMENTS = (torch.complex64, torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16,
            torch.float16, torch.int16, torch.int8, torch.uint8, torch.bool)  # fmt: skip


@pytest.mark.parametrize("count", range(4))
def test_files_are_the_bytes_of_the_reference_implementation(count: int) -> None:
    tensors = {
        f'b{index}"é': torch.randint(0, 2, (index % 3, 5)[: count - 1] if count else ()).to(dtype)
        for index, dtype in enumerate(ELEMENTS)
    } if count < 3 else {}  # fmt: skip
    assert b"".join(tensor_file(Params(tensors))) == save(tensors)


def test_strided_tensors_are_written_row_after_row(tmp_path: Path) -> None:
    tensors = {"t": torch.arange(6.0).view(2, 3).T, "one": torch.ones(1).expand(4)}
    write_tensors(tmp_path / "w.safetensors", Params(tensors))
    read = load((tmp_path / "w.safetensors").read_bytes())
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def shards(folder: Path) -> dict[str, torch.Tensor]:
    """Two shards in a folder."""
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 3, dtype=torch.bfloat16), "c": torch.tensor(3)}
    save_file({"a": tensors["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": tensors["b"], "c": tensors["c"]}, folder / "model-00002-of-00002.safetensors")
    return tensors


def test_shards_of_a_folder_are_one_mapping_that_reads_at_each_use(tmp_path: Path) -> None:
    tensors = shards(tmp_path)
    params = open_tensors(tmp_path)
    assert params == Params(tensors)
    assert repr(params) == "<Params of 3 tensors, 3 of them lazy>"
    assert params["a"] is not params["a"]


def test_index_file_says_which_shard_has_which_tensor(tmp_path: Path) -> None:
    tensors = shards(tmp_path)
    save_file({"a": torch.zeros(9)}, tmp_path / "consolidated.safetensors")
    places = {name: f"model-0000{1 if name == 'a' else 2}-of-00002.safetensors" for name in "abc"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": places}))
    assert open_tensors(tmp_path) == open_tensors(index) == Params(tensors)


def test_folder_without_safetensors_and_unknown_element_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no"):
        open_tensors(tmp_path)
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(ShapeError, match="w has elements of type F8_E4M3"):
        open_tensors(tmp_path)
