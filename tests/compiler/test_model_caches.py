"""Causal language models of folders with caches: their results block by block, and models that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from folders import DECODERS, GROUPED, save_folder
from torch import Tensor

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.model_caches import dequantized, quantized
from fxpress.compiler.pipeline import open_session
from fxpress.ir import Graph, run
from fxpress.specs import SpecError, load_spec

WITHOUT = ("GPTNeoForCausalLM", "MambaForCausalLM")
BLOCKS = (7, 1, 1, 12, 1, 3)
LENGTH = 32


def write_spec(
    folder: Path, *, cache: str = f"{{length: {LENGTH}}}", rest: str = "", outputs: str = "torch: {}"
) -> Path:
    path = folder / "spec.yaml"
    path.write_text(
        f"fxpress: 1\nmodel:\n  source: hf:net\n  cache: {cache}\n{rest}\noutputs: {{{outputs}}}\n"
    )
    return path


def text(count: int) -> Tensor:
    return torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(1))


def in_blocks(graph: Graph, ids: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Logits of the graph for a text that is given in blocks."""
    assert [value.name for value in graph.inputs[:2]] == ["input_ids", "position"]
    caches = [torch.zeros(v.type.shape, dtype=v.type.dtype.torch) for v in graph.inputs[2:]]
    found, position = [], 0
    for count in blocks:
        logits, *caches = run(graph, [ids[:, position : position + count], torch.tensor([position]), *caches])
        found.append(logits)
        position += count
    return torch.cat(found, 1)


@pytest.mark.parametrize("architecture", sorted(DECODERS.keys() - WITHOUT))
def test_a_text_in_blocks_has_the_logits_of_the_whole(tmp_path: Path, architecture: str) -> None:
    model = save_folder(tmp_path / "net", architecture, config=DECODERS[architecture])
    graph = open_session(write_spec(tmp_path)).captured
    assert list(graph.dimensions) == ["tokens"] and graph.dimensions["tokens"].high == LENGTH
    ids = text(sum(BLOCKS))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        found = in_blocks(graph, ids, BLOCKS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("GPTNeoForCausalLM", "GPTNeoForCausalLM of transformers does not work with static caches"),
        ("MambaForCausalLM", "MambaForCausalLM of transformers does not work with static caches"),
        ("BertForSequenceClassification", "is not a causal language model"),
        ("T5ForConditionalGeneration", "is an encoder-decoder"),
    ],
)
def test_a_model_without_static_caches_is_refused_by_name(
    tmp_path: Path, architecture: str, words: str
) -> None:
    save_folder(tmp_path / "net", architecture, config=DECODERS.get(architecture))
    with pytest.raises(UserError, match=rf"{words}.*remove `cache`.*M136"):
        open_session(write_spec(tmp_path))


ROTARY = {
    "dynamic": {"factor": 4.0},
    "longrope": {
        "original_max_position_embeddings": LENGTH,
        "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [2 + i / 4 for i in range(8)],
    },
}


@pytest.mark.parametrize("kind", ROTARY)
def test_rotary_frequencies_that_may_change_are_those_of_the_caches_length(tmp_path: Path, kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **ROTARY[kind]}
    config = transformers.LlamaConfig(**GROUPED, rope_parameters=parameters)
    model = save_folder(tmp_path / "net", "LlamaForCausalLM", config=config)
    ids = text(sum(BLOCKS))
    with torch.no_grad():
        found = in_blocks(open_session(write_spec(tmp_path)).captured, ids, BLOCKS)
        torch.testing.assert_close(found, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    if kind == "longrope":
        with pytest.raises(
            UserError, match=r"type longrope change after 32 positions.*lower `cache.length` to 32"
        ):
            open_session(write_spec(tmp_path, cache=f"{{length: {LENGTH + 1}}}"))


def test_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "GPT2LMHeadModel", config=DECODERS["GPT2LMHeadModel"])
    with pytest.raises(UserError, match=r"`cache.length` is 65, but the model has 64 positions.*M136"):
        open_session(write_spec(tmp_path, cache="{length: 65}"))


WRONG = {
    "a class": ("length: 8", "source: net.py:Net\n  inputs: {x: {shape: [1, 3]}}", "applies to a folder"),
    "states": ("length: 8", "state: {keys_0: keys_0}", "`state` does not apply with `cache`"),
    "outputs": ("length: 8", "outputs: [logits]", "`outputs` does not apply with `cache`"),
    "other inputs": (
        "length: 8",
        "inputs: {attention_mask: {shape: [1, 8]}}",
        "with `cache` they are input_ids and position",
    ),
    "a batch": (
        "length: 8",
        "inputs: {input_ids: {shape: [2, 4], dtype: int64}}",
        "caches are of one sequence",
    ),
    "no room": (
        "length: 8",
        "inputs: {input_ids: {shape: [1, 9], dtype: int64}}",
        "`cache` holds 8 positions",
    ),
    "one position": ("length: 1", "", "greater than or equal to 2|must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_spec_that_cannot_have_caches_is_refused(tmp_path: Path, name: str) -> None:
    cache, rest, words = WRONG[name]
    path = write_spec(tmp_path, cache=f"{{{cache}}}", rest=f"  {rest}" if rest else "")
    if "source" in rest:
        path.write_text(path.read_text().replace("  source: hf:net\n", ""))
    with pytest.raises(SpecError) as raised:
        load_spec(path)
    assert re.search(words, str(raised.value)), raised.value


def test_samples_begin_with_empty_caches(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"])
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef calibration():\n"
        "    return {'input_ids': np.random.default_rng(0).integers(3, 90, (8, 16))}\n"
    )
    data = "data: {calibration: {source: data.py:calibration}}\npasses:\n  - {pass: clean}\n"
    data += "  - {pass: weight_only, weights: int4, rounding: gptq}\n"
    session = open_session(write_spec(tmp_path, rest=data))
    assert session.calibration is not None
    first = session.calibration.call(session.captured.inputs, 0)
    assert first[0].shape == (1, 16) and not any(bool(x.any()) for x in first[1:])
    assert session.spec.model.state["keys_1"] == "keys_1"
    compiled = compile_model(tmp_path / "spec.yaml")
    assert any(bool(v.type.is_quantized) for v in compiled.graph.constants)
    assert any(
        re.search(r"divergence from the float network .* nats", note) for note in compiled.report.notes
    )
    chosen = write_spec(
        tmp_path, rest=data.replace("weights: int4, rounding: gptq", "budget: {weights: 40 %}")
    )
    assert compile_model(chosen).graph.dimensions["tokens"].span == f"1..{LENGTH}"


@pytest.mark.parametrize(("bits", "limit"), [("", 1e-3), (", bits: 8", 1e-2), (", bits: 4", 0.2)])
def test_a_step_of_one_token_runs_as_c(tmp_path: Path, bits: str, limit: float) -> None:
    model = save_folder(
        tmp_path / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"], num_hidden_layers=1
    )
    rest = "  inputs: {input_ids: {shape: [1, 1], dtype: int64}}"
    outputs = "c: {name: step, states: in_place}, torch: {}"
    compiled = compile_model(
        write_spec(tmp_path, cache=f"{{length: {LENGTH}{bits}}}", rest=rest, outputs=outputs)
    )
    ids = text(6)
    steps = {"input_ids": ids.numpy().reshape(6, 1, 1), "position": np.arange(6).reshape(6, 1)}
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0]
    host, module = (compiled.run(steps, on=on).outputs[0].reshape(expected.shape) for on in ("host", "torch"))
    torch.testing.assert_close(module, expected, rtol=0, atol=limit)
    torch.testing.assert_close(host, module, rtol=0, atol=limit)


def test_the_emitted_module_updates_its_caches_in_place(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"])
    found = []
    for states in ("{}", "{states: copied}"):
        compiled = compile_model(write_spec(tmp_path, outputs=f"torch: {states}"))
        assert compiled.torch is not None
        caches = [torch.zeros(v.type.shape) for v in compiled.graph.inputs[2:]]
        with torch.no_grad():
            results = compiled.torch.build()(text(4), torch.tensor([0]), *caches)
        assert all(x.any() == (states == "{}") for x in caches)
        found.append(results)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_states_in_place_are_for_models_with_states(tmp_path: Path) -> None:
    path = write_spec(tmp_path, outputs="torch: {states: in_place}")
    path.write_text(path.read_text().replace(f"  cache: {{length: {LENGTH}}}\n", ""))
    with pytest.raises(SpecError, match=r"outputs.torch.states: the model has no states.*S307"):
        load_spec(path)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.01), (4, 0.2)])
def test_caches_of_few_bits_are_near_the_floats(tmp_path: Path, bits: int, limit: float) -> None:
    model = save_folder(tmp_path / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"])
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef calibration():\n"
        "    return {'input_ids': np.random.default_rng(0).integers(3, 90, (4, 16))}\n"
    )
    data = "data: {calibration: {source: data.py:calibration}}"
    compiled = compile_model(write_spec(tmp_path, cache=f"{{length: {LENGTH}, bits: {bits}}}", rest=data))
    graph, ids = compiled.graph, text(sum(BLOCKS))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        assert 0 < float((in_blocks(graph, ids, BLOCKS) - expected).abs().max()) < limit
        assert compiled.torch is not None
        module, position = compiled.torch.build(), 0
        caches = [torch.zeros(v.type.shape, dtype=v.type.dtype.torch) for v in graph.inputs[2:]]
        others = [cache.clone() for cache in caches]
        for count in BLOCKS:
            given = ids[:, position : position + count], torch.tensor([position])
            found, wanted = module(*given, *caches), run(graph, [*given, *others])
            for y, z in zip(found, wanted, strict=True):  # sums of attention in another order may move a code
                if y.is_floating_point():
                    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
                else:
                    assert float((y != z).float().mean()) < 0.01
            caches, others, position = list(found[1:]), wanted[1:], position + count
    note = next(
        note for note in compiled.report.notes if note.startswith(f"caches of {bits} bits: divergence")
    )
    assert 0 < float(note.split()[5]) < limit**2 and "mean of 64 tokens" in note
    row = next(resource for resource in compiled.report.resources if resource.name == "caches")
    assert row.used == 2 * 2 * 2 * LENGTH * (16 * bits // 8 + 4)
    assert row.basis.endswith(f"{2 * 2 * 2 * LENGTH * 16 * 4:,} B in float32")


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_in_codes_are_within_half_a_step(bits: int) -> None:
    rows = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    rows[0, 0, 0] = 0
    codes, scales = quantized(rows, bits)
    assert codes.shape == (2, 3, 5, 8 * bits // 8) and codes.element_size() == 1
    error = (dequantized(codes, scales) - rows).abs()
    assert bool((error <= scales * (0.5 + 1e-5)).all()) and not error[0, 0, 0].any()
    assert torch.equal(rows.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1), scales)


def test_heads_of_an_odd_size_have_no_caches_of_four_bits(tmp_path: Path) -> None:
    config = DECODERS["GPT2LMHeadModel"]
    save_folder(tmp_path / "net", "GPT2LMHeadModel", config=config, n_embd=60)
    with pytest.raises(
        UserError, match=r"heads of 15 elements cannot be stored as pairs of 4 bits; set `bits: 8`.*M136"
    ):
        open_session(write_spec(tmp_path, cache="{length: 8, bits: 4}"))


def test_codes_have_no_signal_to_noise_ratio(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"])
    passes = "passes: [{pass: clean}, {pass: weight_only, weights: int4}]"
    compiled = compile_model(write_spec(tmp_path, cache="{length: 16, bits: 4}", rest=passes))
    assert compiled.report.noise is not None
    names = {output.name for output in compiled.report.noise.outputs}
    assert {"logits", "key_scales_0"} <= names and not names & {"keys_0", "values_1"}
