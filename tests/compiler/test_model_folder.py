"""Models from Hugging Face folders: the right class, lazy tensors, and folders that are refused by name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import CONFIGS, save_folder, write_spec
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxpress.compiler import UserError, compile_model, load_compiled
from fxpress.compiler.model_folder import load_folder
from fxpress.compiler.pipeline import open_session, run_passes
from fxpress.ir import LazyTensor, Params, run
from fxpress.specs import FolderSource, SpecError, check_spec, load_spec

LARGE = 1000


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of config.json."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def rewrite(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """A change of the tensors, which become a single file."""

    def apply(folder: Path) -> None:
        tensors = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
        for file in folder.glob("model*"):
            file.unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def calls(model: nn.Module, tokens: int) -> dict[str, Tensor]:
    ids = torch.arange(tokens)[None] % 7
    names = ["input_ids", *(["decoder_input_ids"] if model.config.is_encoder_decoder else [])]
    return dict.fromkeys(names, ids)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_graph_of_a_folder_computes_what_its_model_computes(tmp_path: Path, architecture: str) -> None:
    model = save_folder(tmp_path / "net", architecture)
    session = open_session(write_spec(tmp_path, "net"))
    inputs = calls(model, 16)
    with torch.no_grad():
        expected = [x for x in model(**inputs, use_cache=False).values() if isinstance(x, Tensor)]
        found = run(session.captured, [inputs[value.name] for value in session.captured.inputs])
    assert [value.type.shape for value in session.captured.inputs] == [(1, 16)] * len(inputs)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_large_constants_are_never_kept(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", dtype=torch.bfloat16)
    session = open_session(write_spec(tmp_path, "net"))
    for graph in (session.captured, *(stage.graph for stage in run_passes(session))):
        own = {name: e for name, e in graph.params.entries.items() if torch.Size(e.shape).numel() > LARGE}
        assert len(own) > 5 and all(isinstance(entry, LazyTensor) for entry in own.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_emitted_module_computes_what_the_graph_computes(tmp_path: Path, dtype: torch.dtype) -> None:
    model = save_folder(tmp_path / "net", "LlamaForCausalLM", dtype=dtype)
    compiled = compile_model(write_spec(tmp_path, "net"))
    compiled.write(tmp_path / "out")
    ids = calls(model, 16)["input_ids"]
    with torch.no_grad():
        found = load_compiled(tmp_path / "out").module(ids)
        expected = run(compiled.graph, [ids])[0]
    limit = {"rtol": 1e-3, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.2}
    torch.testing.assert_close(found, expected, **limit)
    assert ".reals(" not in (tmp_path / "out/torch/model.py").read_text().partition("class Model")[2]


def test_the_report_says_what_is_left_out(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    compiled = compile_model(write_spec(tmp_path, "net"))
    compiled.write(tmp_path / "out")
    assert any("graph.safetensors is not written" in note for note in compiled.report.notes)
    with pytest.raises(UserError, match=r"was read from a folder.*R417"):
        _ = load_compiled(tmp_path / "out").graph
    assert {"model/config.json", "model/model.safetensors.index.json"} <= compiled_inputs(tmp_path / "out")


def compiled_inputs(folder: Path) -> set[str]:
    return set(json.loads((folder / "spec.lock").read_text())["inputs"])


def test_tied_weights_are_one_constant(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", tie_word_embeddings=True)
    graph = open_session(write_spec(tmp_path, "net")).captured
    assert "lm_head.weight" not in graph.params
    assert len(graph.users["model.embed_tokens.weight"]) == 2


def test_an_attention_mask_is_an_input_where_the_spec_has_one(tmp_path: Path) -> None:
    model = save_folder(tmp_path / "net", "BertForSequenceClassification")
    inputs = "".join(
        f"    {name}: {{shape: [1, 8], dtype: int64}}\n" for name in ("input_ids", "attention_mask")
    )
    graph = open_session(write_spec(tmp_path, "net", model=f"  inputs:\n{inputs}")).captured
    ids, mask = torch.arange(8)[None], (torch.arange(8) < 5).long()[None]
    given = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        expected = model(**given).logits
        found = run(graph, [given[value.name] for value in graph.inputs])[0]
    torch.testing.assert_close(found, expected)


def test_a_checkpoint_without_the_prefix_of_the_base_model_is_read(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "GPT2LMHeadModel")
    rewrite(lambda t: [t.update({n.removeprefix("transformer."): t.pop(n)}) for n in list(t)])(
        tmp_path / "net"
    )
    found = load_folder(FolderSource(tmp_path / "net"))
    assert isinstance(found.params.entry("transformer.wte.weight"), LazyTensor)


def test_tensors_of_another_float_type_are_converted_and_reported(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    edit(lambda config: config.update(dtype="bfloat16"))(tmp_path / "net")
    found = load_folder(FolderSource(tmp_path / "net"))
    assert any("are read from float32 as bfloat16" in note for note in found.notes)
    assert not load_folder(FolderSource(tmp_path / "net"), dtype=torch.float32).notes[:-1]


def test_tensors_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    rewrite(lambda tensors: tensors.update(extra=torch.zeros(3)))(tmp_path / "net")
    assert any(
        "not in the model: extra" in note for note in load_folder(FolderSource(tmp_path / "net")).notes
    )


def _drop_shard(folder: Path) -> None:
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()


def _drop_index_and_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    max(folder.glob("*.safetensors")).unlink()


def _misplace(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["absent.weight"] = min(content["weight_map"].values())
    index.write_text(json.dumps(content))


def _only_pickles(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def _other_code(config: dict[str, Any]) -> None:
    config.update(architectures=["OwnModel"], auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})


def _index(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_bytes(content)


def _shard(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / SHARD).write_bytes(change((folder / SHARD).read_bytes()))


SHARD = "model-00001-of-00003.safetensors"
NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read.*M130"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read.*M130"),
    "no class named": (edit(lambda c: c.pop("architectures")), "no `architectures`.*M132"),
    "heads that do not fit": (
        edit(lambda c: c.update(num_attention_heads=3)),
        r"cannot build LlamaForCausalLM.*The hidden size \(64\) is not a multiple.*M132",
    ),
    "no such class": (edit(lambda c: c.update(architectures=["OwnModel"])), "has no class OwnModel.*M132"),
    "code": (edit(_other_code), r"defined by code of the folder \(modeling_own.OwnModel\).*is not run.*M132"),
    "config": (
        edit(lambda c: c.update(hidden_size="wide")),
        "transformers cannot build LlamaForCausalLM.*M132",
    ),
    "quantized": (edit(lambda c: c.update(quantization_config={"quant_method": "gptq"})), r"\(gptq\).*M133"),
    "no shard": (_drop_shard, r"file not found: .*00001-of-.*M134"),
    "no index": (
        _drop_index_and_shard,
        r"there is no model.safetensors.index.json, and of 3 shards model-00003-of-00003.safetensors is missing.*M134",
    ),
    "misplaced": (_misplace, "does not contain absent.weight, which the index file lists there.*M134"),
    "deep config": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "nested too deeply.*M130",
    ),
    "index cut": (_index(b"{"), "index.json is not a JSON file: .*M134"),
    "index deep": (_index(b"[" * 100_000), "(is not a JSON file: |decoding a JSON array).*M134"),
    "index list": (_index(b"[]"), "has no weight_map of tensors to files.*M134"),
    "index of numbers": (_index(b'{"weight_map": {"a": 3}}'), "has no weight_map of tensors to files.*M134"),
    "empty index": (_index(b'{"weight_map": {}}'), "has no weight_map of tensors to files.*M134"),
    "long header": (
        _shard(lambda data: (1 << 40).to_bytes(8, "little") + data[8:]),
        f"{SHARD}: .*header.*M134",
    ),
    "cut shard": (_shard(lambda data: data[: len(data) // 2]), f"{SHARD}: .*M134"),
    "empty shard": (_shard(lambda data: b""), f"{SHARD}: .*M134"),
    "pickles": (_only_pickles, "convert pytorch_model.bin.*M134"),
    "lacks": (rewrite(lambda t: t.pop(NORM)), f"lacks {NORM}.*M112"),
    "lacks many": (
        rewrite(lambda t: [t.pop(name) for name in list(t) if "q_proj" in name or "mlp" in name]),
        r"^[^\n]*lacks 8 tensors: model.layers.0.self_attn.q_proj.weight, .* and 5 more; .*M112\]$",
    ),
    "shapes": (
        rewrite(lambda t: t.update({name: torch.ones(3, 3) for name in t if "proj" in name})),
        r"^([^\n]*M114\]\n){7}.*and 6 more like it.*M114\]$",
    ),
    "shape": (rewrite(lambda t: t.update({NORM: torch.ones(3)})), rf"{NORM} is \(3,\); the model has.*M114"),
    "integers": (
        rewrite(lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)})),
        f"{NORM} is stored as int8; the model has float32.*M135",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, words = FAULTS[name]
    save_folder(tmp_path, "LlamaForCausalLM")
    change(tmp_path)
    with pytest.raises(UserError) as raised:
        load_folder(FolderSource(tmp_path))
    assert re.search(words, str(raised.value)), raised.value


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True)
    rewrite(lambda tensors: tensors.update({"lm_head.weight": torch.zeros(96, 64)}))(tmp_path)
    with pytest.raises(UserError, match=r"embed_tokens.weight and lm_head.weight differ.*M118"):
        load_folder(FolderSource(tmp_path))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    rewrite(lambda tensors: tensors[NORM].fill_(float("nan")))(tmp_path / "net")
    with pytest.raises(UserError, match=rf"{NORM} contains NaN or infinity.*M121"):
        open_session(write_spec(tmp_path, "net"))


def test_positions_that_are_no_number_above_zero_do_not_limit_the_inputs(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    edit(lambda config: config.update(max_position_embeddings=0))(tmp_path / "net")
    assert load_spec(write_spec(tmp_path, "net")).spec.model.inputs["input_ids"].shape == (1, 128)


def test_without_transformers_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_folder(tmp_path, "LlamaForCausalLM")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers 5.*pip install 'fxpress\[hf\]'.*M131"):
        load_folder(FolderSource(tmp_path))


@pytest.mark.parametrize(
    ("model", "words"),
    [("  args: {a: 1}\n", "`args` does not apply"), ("  weights: w.pt\n", "`weights` does not apply")],
)
def test_a_folder_has_arguments_and_weights_of_its_own(tmp_path: Path, model: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load_spec(write_spec(tmp_path, "net", model=model))


def test_a_folder_that_is_not_there_is_found_by_the_check_of_the_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"folder not found: .*nothing is downloaded.*S311"):
        check_spec(write_spec(tmp_path, "net"))
    (tmp_path / "net").mkdir()
    with pytest.raises(SpecError, match=r"has no config.json.*S312"):
        check_spec(write_spec(tmp_path, "net"))


def test_integers_of_gptq_are_kept_in_files(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    spec = write_spec(tmp_path, "net")
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef calibration():\n"
        "    return {'input_ids': np.random.default_rng(0).integers(0, 96, (4, 16))}\n"
    )
    text = spec.read_text().replace("weights: int4", "weights: int4\n    rounding: gptq")
    spec.write_text(text + "data:\n  calibration: {source: data.py:calibration}\n")
    session = open_session(spec)
    graph = run_passes(session)[-1].graph
    entries = {v.name: graph.params.entry(v.name) for v in graph.constants if v.type.is_quantized}
    assert len(entries) > 5 and all(isinstance(entry, LazyTensor) for entry in entries.values())
    tensor = Params(entries)["lm_head.weight"]
    assert tensor.dtype is torch.int8 and -8 <= int(tensor.min()) < int(tensor.max()) <= 7
