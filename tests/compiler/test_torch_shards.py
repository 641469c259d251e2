"""Torch modules with weights in several files: the module of one file, and damaged files are refused by name."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from folders import save_folder, write_spec
from safetensors.torch import load_file, save_file
from sample_project import write_project

from fxpress.backends.torch_module import TorchOptions
from fxpress.compiler import UserError, compile_model, load_compiled
from fxpress.compiler.cli import main
from fxpress.specs.root_error import ArgumentError

INDEX, FIRST = "model.safetensors.index.json", "model-00001-of-00006.safetensors"


def import_emitted(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("emitted_in_shards", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tied", [False, True])
def test_shards_of_a_language_model_give_the_bits_of_one_file(tmp_path: Path, tied: bool) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", tie_word_embeddings=tied)
    spec = write_spec(tmp_path, "net", weights="int8")
    one, many = compile_model(spec), compile_model(spec, overrides=["outputs.torch={max_shard_bytes: 20 kB}"])
    one.write(tmp_path / "one")
    many.write(tmp_path / "many")
    names = sorted(name for name in many.files if name.startswith("torch/model-"))
    assert len(names) >= 3 and "torch/model.safetensors" not in many.files
    assert {*names, f"torch/{INDEX}"} <= json.loads(many.files["spec.lock"])["outputs"].keys()
    tensors, index = (
        load_file(tmp_path / "one/torch/model.safetensors"),
        json.loads(many.files[f"torch/{INDEX}"]),
    )
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for name in names:
        held = load_file(tmp_path / "many" / name)
        assert sum(t.nbytes for t in held.values()) <= 20_000 or len(held) == 1
        assert all(torch.equal(held[key], tensors[key]) for key in held)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        results = [load_compiled(tmp_path / folder).module(ids) for folder in ("one", "many")]
    assert torch.equal(*results)


@pytest.mark.parametrize("form", ["qdq", "eager", "native"])
def test_shards_of_a_quantized_form_give_the_bits_of_one_file(project: Path, form: str) -> None:
    spec, images, found = project / "net.yaml", np.load(project / "data.npz")["x"], []
    for folder, size in (("one", "1 GB"), ("many", "300 B")):
        options = f"outputs.torch={{form: {form}, max_shard_bytes: {size}}}"
        compile_model(spec, overrides=[options, "outputs.c=null"]).write(project / folder)
        found.append(load_compiled(project / folder).run(images, on="torch").outputs)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert (project / "one/torch/model.safetensors").is_file()
    assert len(list((project / "many/torch").glob("model-*"))) >= 3


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory with a file of weights for each tensor; for reading only."""
    folder = write_project(tmp_path_factory.mktemp("sharded"))
    options = ["outputs.torch={max_shard_bytes: 1 B}", "outputs.c=null"]
    compile_model(folder / "net.yaml", overrides=options).write(folder / "out")
    return folder / "out"


@pytest.fixture
def damaged(sharded: Path, tmp_path: Path) -> Path:
    """A copy of the output directory, to be damaged."""
    return shutil.copytree(sharded, tmp_path / "out")


def edit(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """A change of the map of tensors to files."""

    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def cut(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-1])


def reshape(folder: Path) -> None:
    save_file({name: x[None, :-1] for name, x in load_file(folder / FIRST).items()}, folder / FIRST)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (
        lambda folder: (folder / FIRST).unlink(),
        rf"file not found: .*{FIRST}, listed in {INDEX}",
    ),
    "damaged file": (cut, rf"{FIRST} is damaged: "),
    "tensor of another file": (
        edit(lambda places: places.update({"head.bias": places["head.weight"]})),
        rf"model-0000\d-of-0000\d.safetensors does not contain head.bias, which {INDEX} lists there",
    ),
    "unknown tensor": (
        edit(lambda places: places.update({"tail.bias": FIRST})),
        rf"{INDEX} lists tail.bias, which is not in the module",
    ),
    "unnamed tensor": (
        edit(lambda places: places.pop("head.bias")),
        rf"{INDEX} does not list head.bias, a tensor of the module",
    ),
    "damaged index": (
        lambda folder: (folder / INDEX).write_text("{}"),
        rf"{INDEX} is damaged: it has no weight_map",
    ),
    "other shape": (reshape, rf"{FIRST}: head.bias has shape \[1, 4\]; the module takes \[5\]"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_loader_of_the_emitted_file_names_what_is_wrong(damaged: Path, name: str) -> None:
    change, words = FAULTS[name]
    compiled, emitted = load_compiled(damaged), import_emitted(damaged / "torch")
    change(damaged / "torch")
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        emitted.load_shards(emitted.Model(), damaged / "torch" / INDEX)
    with pytest.raises(
        UserError, match=r"torch: the weights cannot be loaded: (FileNotFound|Value)Error: .*; copy .*R413"
    ):
        _ = compiled.module  # the text is shortened where paths are long
    with pytest.raises(UserError, match=rf"({FIRST}|{INDEX}): (cannot be read|was changed).*R41[01]"):
        load_compiled(damaged)


def test_a_damaged_shard_is_refused_by_run(
    damaged: Path, sharded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(damaged / "torch")
    arguments = ["--on", "torch", "--data", str(sharded.parent / "data.npz"), "--input", "image=x"]
    assert main(["run", str(sharded), *arguments]) == 0
    assert main(["run", str(damaged), *arguments]) == 2
    assert re.search(rf"{FIRST}: was changed.*R411", capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize("size", [0, -1])
def test_shards_of_no_bytes_are_refused(size: int) -> None:
    with pytest.raises(ArgumentError, match="not a number of bytes above zero"):
        TorchOptions(max_shard_bytes=size)
