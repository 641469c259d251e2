"""Tokenizers in GGUF files: byte-level BPE of a tokenizer.json whose texts are split as llama.cpp knows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..specs import FolderSource, Spec
from .model_folder import completed_config

_FILE = "tokenizer.json"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""llama.cpp's name of a tokenizer, by the pattern that splits texts."""


def tokenizer_notes(spec: Spec) -> list[str]:
    """Notes for the report about the tokenizer of the GGUF file."""
    if spec.outputs.gguf is None or not isinstance(spec.model.source, FolderSource):
        return []
    folder = spec.model.source.path
    vocabulary = getattr(completed_config(spec.model.source), "vocab_size", 0)
    if _split(_read(folder), vocabulary) is not None:
        return []
    reason = (
        f"{_FILE} is no byte-level BPE of Llama 3 or Qwen2 within the vocabulary"
        if (folder / _FILE).is_file()
        else f"there is no {_FILE}"
    )
    return [f"the GGUF file has no tokenizer, {reason}: the program that runs it has to be given token ids"]


def add_tokenizer(package: Any, writer: Any, folder: Path, vocabulary: int) -> None:  # Any: gguf is optional
    """Write the tokenizer of a folder to the header, or that there is none; tokens up to `vocabulary` are padded."""
    described = _read(folder)
    split = _split(described, vocabulary)
    if split is None:
        writer.add_tokenizer_model("none")
        return
    kinds = package.TokenType
    added = {token["id"]: token for token in described.get("added_tokens", ())}
    texts = {index: text for text, index in described["model"]["vocab"].items()}
    texts |= {index: token["content"] for index, token in added.items()}
    types = [kinds.NORMAL if index in texts else kinds.UNUSED for index in range(vocabulary)]
    for index, token in added.items():
        types[index] = kinds.CONTROL if token["special"] else kinds.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([texts.get(index, f"[PAD{index}]") for index in range(vocabulary)])
    writer.add_token_types(types)
    package.SpecialVocab(folder, load_merges=True, n_vocab=vocabulary).add_to_gguf(writer, quiet=True)


def _read(folder: Path) -> Mapping[str, Any]:  # Any: whatever the file holds
    path = folder / _FILE
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _split(described: Mapping[str, Any], vocabulary: int) -> str | None:  # Any: as in the file
    """llama.cpp's name of the tokenizer; None for one that it does not have, or with more tokens than the model."""
    before = described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    model = described.get("model", {})
    if model.get("type") != "BPE" or kinds != ["Split", "ByteLevel"]:
        return None
    ids = [*model["vocab"].values(), *(token["id"] for token in described.get("added_tokens", ()))]
    if max(ids, default=0) >= vocabulary:
        return None
    return _SPLITS.get(steps[0].get("pattern", {}).get("Regex"))
