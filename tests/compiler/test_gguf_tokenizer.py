"""Tokenizers in GGUF files: those that llama.cpp computes in the same way, and files that are damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
from folders import save_folder, write_spec
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.gguf_tokenizer import _SPLITS

LLAMA, QWEN2 = "LlamaForCausalLM", "Qwen2ForCausalLM"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = [
    "the",
    "then",
    "them",
    "hen",
    "he",
    f"{SPACE}the",
    f"{SPACE}he",
    f"{SPACE}",
    "aaa",
    "aa",
    "th",
    "em",
    "en",
]
SIZE = 400


def written(folder: Path) -> tuple[Any, dict[str, Any]]:  # Any: what GGUF holds
    compiled = compile_model(write_spec(folder, "net", outputs="gguf: {}"))
    compiled.write(folder / "out")
    fields = gguf.GGUFReader(folder / "out/gguf/model.gguf").fields
    names = [name for name in fields if name.startswith("tokenizer")]
    return compiled, {name.removeprefix("tokenizer.ggml."): fields[name].contents() for name in names}


def byte_level(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def sentence_piece(change: Callable[[list[tuple[str, str]]], object] = lambda pairs: None) -> Tokenizer:
    """A tokenizer as transformers converts it from SentencePiece; `change` alters its merges."""
    characters = sorted({c for word in WORDS for c in word})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    joined = sorted((word for word in WORDS if len(word) > 1), key=len)
    vocab = {piece: index for index, piece in enumerate([*pieces, *joined, *characters])}
    pairs = [
        (word[:end], word[end:])
        for word in joined
        for end in range(1, len(word))
        if word[:end] in vocab and word[end:] in vocab
    ]
    change(pairs)
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def save(folder: Path, architecture: str, tokenizer: Tokenizer, **described: str) -> None:
    save_folder(folder / "net", architecture, vocab_size=SIZE)
    tokenizer.save(str(folder / "net/tokenizer.json"))
    (folder / "net/tokenizer_config.json").write_text(json.dumps(described))


def joined_by_score(text: str, tokens: list[str], scores: list[float]) -> list[str]:
    """Tokens of a text as llama.cpp finds them: the best two neighbours are joined until none make a token."""
    best = dict(zip(tokens, scores, strict=True))
    symbols = list(SPACE + text.replace(" ", SPACE))
    while pairs := [(-best[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in best]:
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    spelled = ([s] if s in best else [f"<0x{byte:02X}>" for byte in s.encode()] for s in symbols)
    return [token for part in spelled for token in part]


def test_byte_level_tokenizers_are_written_by_the_pattern_that_splits_texts(tmp_path: Path) -> None:
    pattern = next(pattern for pattern, name in _SPLITS.items() if name == "qwen2")
    save(tmp_path, QWEN2, byte_level(pattern), eos_token="<end>")
    compiled, contents = written(tmp_path)
    assert contents["tokens"][:5] == ["a", "b", "ab", "<end>", "[PAD4]"]
    assert len(contents["tokens"]) == SIZE
    assert contents["token_type"][:5] == [1, 1, 1, 3, 5]
    assert contents["merges"] == ["a b"]
    assert (contents["model"], contents["pre"], contents["eos_token_id"]) == ("gpt2", "qwen2", 3)
    assert not any("tokenizer" in note for note in compiled.report.notes)


def test_scores_of_sentence_piece_give_the_tokens_of_its_merges(tmp_path: Path) -> None:
    tokenizer = sentence_piece()
    save(tmp_path, LLAMA, tokenizer, bos_token="<s>", eos_token="</s>")
    compiled, contents = written(tmp_path)
    assert (contents["model"], contents["add_space_prefix"]) == ("llama", True)
    assert (contents["bos_token_id"], contents["eos_token_id"]) == (1, 2)
    assert contents["token_type"][:4] == [2, 3, 3, 6] and contents["token_type"][-1] == 5
    assert contents["token_type"][contents["tokens"].index("the")] == 1
    assert not any("tokenizer" in note for note in compiled.report.notes)
    drawn = random.Random(0)
    for _ in range(200):
        text = "".join(drawn.choice("theman  \n\u00e9") for _ in range(drawn.randrange(1, 12)))
        expected = tokenizer.encode(text, add_special_tokens=False).tokens
        assert joined_by_score(text, contents["tokens"], contents["scores"]) == expected, text


def test_transformers_reads_the_tokenizer_of_sentence_piece(tmp_path: Path) -> None:
    tokenizer = sentence_piece()
    save(tmp_path, LLAMA, tokenizer, bos_token="<s>", eos_token="</s>")
    written(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out/gguf", gguf_file="model.gguf")
    text = "then the hen \u00e9 them"
    assert loaded.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).tokens


def _metaspace(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "never", False)


def test_a_tokenizer_of_sentence_piece_without_a_space_before_texts_says_so(tmp_path: Path) -> None:
    tokenizer = sentence_piece()
    _metaspace(tokenizer)
    save(tmp_path, LLAMA, tokenizer)
    assert written(tmp_path)[1]["add_space_prefix"] is False


def _more_tokens() -> Tokenizer:
    tokenizer = byte_level(next(iter(_SPLITS)))
    tokenizer.add_tokens([f"<{i}>" for i in range(SIZE)])
    return tokenizer


LEFT_OUT: dict[str, Callable[[], Tokenizer]] = {
    "more tokens": _more_tokens,
    "other splits": lambda: byte_level("other"),
    "other ranks": lambda: sentence_piece(lambda pairs: pairs.append(pairs.pop(pairs.index(("t", "hen"))))),
    "no such merge": lambda: sentence_piece(lambda pairs: pairs.remove(("t", "hen"))),
    "words": lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_left_out_and_noted(tmp_path: Path, name: str) -> None:
    save(tmp_path, LLAMA, LEFT_OUT[name]())
    compiled, contents = written(tmp_path)
    assert contents == {"model": "none"}
    assert any(
        "has no tokenizer, tokenizer.json is neither a byte-level BPE" in note
        for note in compiled.report.notes
    )


def test_a_folder_without_a_tokenizer_is_noted(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", LLAMA)
    compiled, _ = written(tmp_path)
    assert any("has no tokenizer, tokenizer.json not found" in note for note in compiled.report.notes)


FAULTS: dict[str, tuple[str, bytes]] = {
    "no json": ("tokenizer.json", b"{"),
    "no object": ("tokenizer.json", b"[]"),
    "deep": ("tokenizer.json", b"[" * 100_000),
    "no text": ("tokenizer.json", b"\xff\xfe\x00"),
    "no model": ("tokenizer.json", b'{"model": 3}'),
    "no vocabulary": ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3, "merges": []}}'),
    "configuration": ("tokenizer_config.json", b"{"),
    "configuration list": ("tokenizer_config.json", b"[]"),
    "template": ("chat_template.json", b"[]"),
    "template text": ("chat_template.jinja", b"\xff"),
    "templates": ("tokenizer_config.json", b'{"chat_template": [3]}'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    file, content = FAULTS[name]
    save(tmp_path, QWEN2, byte_level(next(iter(_SPLITS))), eos_token="<end>")
    (tmp_path / "net" / file).write_bytes(content)
    said = (
        "the tokenizer's special tokens or chat template" if name in ("template text", "templates") else file
    )
    with pytest.raises(UserError, match=f"{said} cannot be read: .*M137"):
        written(tmp_path)
