"""The language model of the examples, on the trained weights."""

import importlib
import os
import runpy
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
EXAMPLE = ROOT / "examples" / "language_model"


@pytest.mark.skipif(
    not (SHARED / "models" / "stories260k_llama.safetensors").exists(),
    reason="the trained networks are not in ../shared",
)
@pytest.mark.slow
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_fewer_bits_lose_little_and_calibrated_rounding_loses_less(
    is_calibrated: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("tokenizer", "texts", "llama"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    example = runpy.run_path(str(EXAMPLE / "perplexity.py"))
    settings = example["main"].__globals__
    methods = ("nearest", "gptq") if is_calibrated else ("nearest",)
    settings["METHODS"] = {name: settings["METHODS"][name] for name in methods}
    settings["BITS"], settings["WITHIN_BUDGET"], settings["TABLES"] = (8, 4), (), {}
    settings["WINDOWS"], sampled = 2, settings["sampled"]
    settings["sampled"] = lambda count, *, seed: sampled(count // (4 if is_calibrated else 24), seed=seed)
    settings["main"]([])
    table = capsys.readouterr().out.partition("method ")[2].splitlines()[1:]
    found = {(name, bits): tuple(map(float, rest)) for name, bits, *rest in map(str.split, table)}
    size, divergence, story = ({key: row[at] for key, row in found.items()} for at in range(3))
    assert abs(divergence["float32", "32"]) < 1e-5 and story["float32", "32"] < 1.6
    assert divergence["nearest", "8"] < 0.005
    assert story["nearest", "8"] < story["float32", "32"] * 1.01
    assert divergence["nearest", "4"] < 0.12
    if not is_calibrated:
        return
    assert divergence["gptq", "4"] < 0.8 * divergence["nearest", "4"]
    assert size["gptq", "4"] == size["nearest", "4"] < 180_000


@pytest.mark.skipif(
    not (SHARED / "models" / "stories260k_tokenizer.npz").exists(),
    reason="the trained networks are not in ../shared",
)
def test_a_program_in_c_tells_a_story(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("tokenizer", "llama", "step"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--tokens", "30", "--output", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLE / "generate.py"), run_name="__main__")
    assert "Once upon a time, there was a little girl named Lily." in capfd.readouterr().out


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("convert_stories")
    for name in ("convert_stories", "llama"):
        sys.modules.pop(name, None)


def checkpoint(weights: dict[str, Tensor], sizes: tuple[int, ...]) -> bytes:
    """The file of llama2.c: kinds of weights one after the other, each with all layers."""
    parts = ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo")
    parts += ("ffn_norm", "ffn.w1", "ffn.w2", "ffn.w3")
    names = [f"layers.{i}.{part}.weight" for part in parts for i in range(sizes[2])]
    tensors = [weights[n] for n in ("tok_embeddings.weight", *names, "norm.weight")]
    rotations = torch.zeros(2 * 512 * 4)  # the file ends with tables that the network computes itself
    return struct.pack("<7i", *sizes) + b"".join(t.numpy().tobytes() for t in (*tensors, rotations))


def test_a_checkpoint_of_llama2_c_becomes_the_files_of_the_example(
    converter: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = {name: t.detach() for name, t in converter.Stories260K().state_dict().items()}
    (tmp_path / "model.bin").write_bytes(checkpoint(weights, converter.SIZES))
    pieces = [b"<unk>", b"\n<s>\n", b"ab"]
    content = b"".join(struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces))
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 5) + content)
    (tmp_path / "text.txt").write_bytes(bytes(range(100)))
    converter.STORY = 4
    files = [str(tmp_path / name) for name in ("model.bin", "tok.bin")]
    converter.main([*files, "--text", str(tmp_path / "text.txt"), "--folder", str(tmp_path)])
    written = load_file(tmp_path / "models" / "stories260k_llama.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], weights[name]) for name in weights)
    with np.load(tmp_path / "models" / "stories260k_tokenizer.npz") as arrays:
        assert arrays["piece_bytes"].tobytes() == b"".join(pieces)
        assert arrays["piece_offset"].tolist() == [0, 5, 10, 12]
        assert arrays["score"].tolist() == [0, -1, -2]
        assert arrays["greedy_ids"].shape == (4,) and arrays["greedy_ids"][0] == 1
    with np.load(tmp_path / "data" / "tinyshakespeare.npz") as arrays:
        assert len(arrays["train"]) == 90 and arrays["val"].tolist() == [90, 91, 92, 93, 94]


def test_a_checkpoint_of_another_model_is_refused(converter: ModuleType) -> None:
    with pytest.raises(ValueError, match="the checkpoint has the sizes"):
        converter.read_checkpoint(struct.pack("<7i", 288, 768, 6, 6, 6, 32000, 256))
    with pytest.raises(ValueError, match="the checkpoint ends before tok_embeddings"):
        converter.read_checkpoint(struct.pack("<7i", *converter.SIZES))


@pytest.mark.skipif(
    not (SHARED / "models" / "stories260k_llama.safetensors").exists(),
    reason="the trained networks are not in ../shared",
)
def test_the_trained_model_writes_the_published_story(converter: ModuleType) -> None:
    network = converter.Stories260K()
    network.load_state_dict(load_file(SHARED / "models" / "stories260k_llama.safetensors"))
    with np.load(SHARED / "models" / "stories260k_tokenizer.npz") as arrays:
        assert converter.greedy(network.eval(), 48) == arrays["greedy_ids"][:48].tolist()
