"""Text of compiled language models: the tokens of transformers, perplexity, the command, and its refusals."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from folders import DECODERS, save_folder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn

from fxpress.compiler import ArgumentError, UserError, compile_model, load_compiled
from fxpress.compiler.cli import USER_ERROR, main
from fxpress.compiler.text_generation import TextModel

LENGTH = 640
SPEC = """
fxpress: 1
model:
  source: hf:net
  cache: {length: %d}
passes: [{pass: clean}]
outputs: {torch: {}}
"""


def write_tokenizer(folder: Path) -> None:
    words = {f"w{i}": i for i in range(96)}
    tokenizer = tokenizers.Tokenizer(WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def compiled(folder: Path, *, length: int = LENGTH, tokenizer: bool = True, **changes: object) -> nn.Module:
    """Compile a Llama into `folder / out` and return the model."""
    changes = {"max_position_embeddings": 1024, "tie_word_embeddings": True, **changes}
    model = save_folder(folder / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"], **changes)
    if tokenizer:
        write_tokenizer(folder / "net")
    (folder / "spec.yaml").write_text(SPEC % length)
    compile_model(folder / "spec.yaml").write(folder / "out")
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("text")
    return folder / "out", compiled(folder, eos_token_id=95)


@pytest.fixture
def text_model(made: tuple[Path, nn.Module]) -> Iterator[TextModel]:
    return load_compiled(made[0]).text_model


def text(count: int) -> Tensor:
    return torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(count))


def greedy(model: nn.Module, prompt: Tensor, tokens: int) -> list[int]:
    with torch.no_grad():
        found = model.generate(prompt, max_new_tokens=tokens, do_sample=False)
    return list(map(int, found[0, prompt.shape[1] :]))


@pytest.mark.parametrize("count", [1, 7, 600])
def test_greedy_tokens_are_those_of_transformers(
    made: tuple[Path, nn.Module], text_model: TextModel, count: int
) -> None:
    prompt = text(count)
    found = text_model.generate(prompt[0].tolist(), tokens=20)
    assert list(found.tokens) == greedy(made[1], prompt, 20)
    assert found.prompt == tuple(prompt[0].tolist()) and not found.is_full


def test_a_token_that_ends_the_text_ends_it(tmp_path: Path) -> None:
    model = compiled(tmp_path, length=16, tokenizer=False)
    prompt = text(4)
    first = greedy(model, prompt, 1)[0]
    (tmp_path / "net/generation_config.json").write_text(f'{{"eos_token_id": [94, {first}]}}')
    compile_model(tmp_path / "spec.yaml").write(tmp_path / "out")
    found = load_compiled(tmp_path / "out").text_model.generate(prompt[0].tolist(), tokens=9)
    assert found.tokens == (first,) and not found.is_full and found.text is None


def test_full_caches_end_a_text(text_model: TextModel) -> None:
    found = text_model.generate([5] * (LENGTH - 2), tokens=9)
    assert found.is_full and len(found.tokens) == 3  # the last is not stored


def test_sampling_is_repeated_by_its_seed(text_model: TextModel) -> None:
    def sampled(temperature: float, seed: int) -> tuple[int, ...]:
        return text_model.generate([5, 6], tokens=12, temperature=temperature, seed=seed).tokens

    assert sampled(2.0, 1) == sampled(2.0, 1) != sampled(2.0, 2)
    assert sampled(1e-9, 1) == sampled(0.0, 0)


def test_perplexity_is_that_of_the_model_in_windows(
    made: tuple[Path, nn.Module], text_model: TextModel
) -> None:
    ids, losses = text(2 * LENGTH + 1), []
    for window in ids[:, : 2 * LENGTH].split(LENGTH, 1):
        with torch.no_grad():
            logits = made[1](input_ids=window, use_cache=False).logits[0, :-1]
        losses.append(nn.functional.cross_entropy(logits, window[0, 1:], reduction="none"))
    found = text_model.perplexity(ids[0].tolist())
    assert found.tokens == 2 * (LENGTH - 1) and found.window == LENGTH
    assert math.isclose(found.value, float(torch.cat(losses).mean().exp()), rel_tol=1e-4)


WRONG_ARGUMENTS = {
    "no tokens": ({"tokens": 0}, "expects at least one token, got 0"),
    "a fraction of tokens": ({"tokens": 1.5}, "expects a number of tokens, got 1.5"),
    "a negative temperature": ({"temperature": -1}, "expects a number from 0, got -1"),
    "no temperature": ({"temperature": float("nan")}, "expects a number from 0, got nan"),
    "text": ({"prompt": "Once"}, "expects a list of token ids; encode text with `encode`"),
    "fractions": ({"prompt": [3.5]}, "expects a list of token ids"),
    "rows of ids": ({"prompt": torch.ones(1, 2, dtype=torch.int64)}, "expects a list of token ids"),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused(text_model: TextModel, name: str) -> None:
    changed, words = WRONG_ARGUMENTS[name]
    arguments: dict[str, Any] = {"prompt": [5], "tokens": 2, **changed}  # Any: wrong on purpose
    with pytest.raises(ArgumentError, match=words):
        text_model.generate(**arguments)


def test_ids_may_be_a_tensor(text_model: TextModel) -> None:
    expected = text_model.generate([5, 7], tokens=2)
    assert text_model.generate(torch.tensor([5, 7]), tokens=2).tokens == expected.tokens


REFUSED = {
    "an empty prompt": ([], "the prompt has no tokens.*R419"),
    "a long prompt": ([5] * (LENGTH + 1), "641 tokens, but the caches hold 640.*R419"),
    "an unknown token": ([5, 96], "token 96 is not in the vocabulary.*R419"),
    "a token below zero": ([5, -1], "token -1 is not in the vocabulary.*R419"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_does_not_fit_is_refused(text_model: TextModel, name: str) -> None:
    prompt, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        text_model.generate(prompt, tokens=2)


def test_the_command_prints_text_and_speed(
    made: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(made[0]), "--prompt", "w5 w6", "--tokens", "3"]) == 0
    printed = capsys.readouterr().out
    tokens = greedy(made[1], torch.tensor([[5, 6]]), 3)
    assert printed.startswith(f"w5 w6 {' '.join(f'w{i}' for i in tokens)}\n")
    assert re.search(r"prompt +2 tokens +[\d,.]+ tokens/s\ngenerated +3 tokens +[\d,.]+ tokens/s", printed)
    assert main(["run", str(made[0]), "--prompt-ids", "5,6", "--tokens", "3"]) == 0
    assert capsys.readouterr().out.partition("\n")[0] == printed.partition("\n")[0]


def test_the_command_prints_perplexity(
    made: tuple[Path, nn.Module], text_model: TextModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("w5 w6 w7 w8 w9")
    assert main(["run", str(made[0]), "--perplexity", str(tmp_path / "text.txt"), "--tokens", "4"]) == 0
    printed = capsys.readouterr().out
    assert f"{text_model.perplexity([5, 6, 7, 8]).value:.4g}" in printed
    assert re.search(r"predicted tokens +3\n", printed)


WRONG = {
    "data options": (["--prompt", "w5", "--labels", "y"], "--labels: does not apply to --prompt.*R421"),
    "text options": (["--data", "x.npz", "--tokens", "3"], "--tokens: does not apply to --data.*R421"),
    "sampling": (["--perplexity", "x.txt", "--seed", "3"], "--seed: does not apply to --perplexity.*R421"),
    "place": (["--prompt", "w5", "--on", "host"], "generated by the torch module.*R421"),
    "no text": (["--perplexity", "absent.txt"], "absent.txt: cannot be read.*R422"),
    "bytes": (["--perplexity", "bytes.txt"], "is not UTF-8 from byte 0.*R422"),
    "one token": (["--perplexity", "short.txt"], "has 1 tokens.*R419"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_do_not_fit_are_refused(
    made: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    options, words = WRONG[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    (tmp_path / "short.txt").write_text("w5")
    assert main(["run", str(made[0]), *options]) == USER_ERROR
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))


@pytest.mark.parametrize("option", ["--prompt-ids=1,x", "--temperature=-1", "--temperature=nan", "--seed=-1"])
def test_numbers_that_are_none_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "out", *([] if "ids" in option else ["--prompt-ids", "1"]), option])
    assert option.partition("=")[0] in capsys.readouterr().err


def test_without_tokenizers_the_remedy_is_named(
    text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs the package tokenizers; pip install 'fxpress\[hf\]'.*R420"):
        text_model.encode("w5")


def test_the_report_has_the_bytes_of_the_caches(tmp_path: Path) -> None:
    compiled(tmp_path, length=16, tokenizer=False)
    report = load_compiled(tmp_path / "out").report
    found = {resource.name: resource for resource in report.resources}["caches"]
    assert found.used == 2 * 2 * (2 * 16 * 16) * 4 and "4 tensors of 16 positions" in found.basis
    assert any("takes prompts as token ids" in note for note in report.notes)


def test_networks_that_generate_no_text_are_refused(tmp_path: Path) -> None:
    compiled(tmp_path, length=16, tokenizer=False)
    network = load_compiled(tmp_path / "out")
    with pytest.raises(UserError, match=r"has no tokenizer.json.*--prompt-ids 1,15,27.*R420"):
        network.text_model.encode("w5")
    fixed = SPEC % 16 + "  "
    for old, new, words in (
        ("  cache: {length: 16}\n", "", "has no caches.*R418"),
        (
            "length: 16}\n",
            "length: 16}\n  inputs: {input_ids: {shape: [1, 4], dtype: int64}}\n",
            "not single tokens",
        ),
    ):
        (tmp_path / "spec.yaml").write_text(fixed.replace(old, new))
        compile_model(tmp_path / "spec.yaml").write(tmp_path / "out")
        with pytest.raises(UserError, match=words):
            _ = load_compiled(tmp_path / "out").text_model


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_damaged_file_beside_the_weights_is_named(tmp_path: Path, name: str) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", config=DECODERS["LlamaForCausalLM"])
    (tmp_path / "net" / name).write_text("{")
    (tmp_path / "net.yaml").write_text(SPEC % 16)
    with pytest.raises(UserError, match=rf"{name} cannot be read.*M137"):
        compile_model(tmp_path / "net.yaml")
