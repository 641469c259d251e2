"""Tokenizers in GGUF files: the two kinds of a tokenizer.json that llama.cpp computes in the same way.

    gpt2    byte-level BPE whose texts are split as Llama 3 or Qwen2 splits them
    llama   BPE of SentencePiece, as in Llama 2 and Mistral: characters that are not tokens are bytes, and the two
            neighbours whose union has the highest score are joined first, the left ones of equals

A tokenizer.json has ranks of merges and no scores. The second kind is written if ranks and scores are equivalent: each
split of a token into two tokens is a merge, and the merges of a token are consecutive. Its score is then minus its
position among the merged tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..specs import FolderSource, Spec
from ..specs.model_folder import TOKENIZER_FILE
from .isolation import USER_CODE_RAISES
from .model_folder import completed_config, damaged, read_beside, read_tokenizer

_OTHER_FILES = ("tokenizer_config.json", "chat_template.json")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""Name of a tokenizer in llama.cpp, by the pattern that splits texts."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_CHANGES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class _ByteLevel:
    """A BPE of bytes, and llama.cpp's name of its method to split texts."""

    split: str


@dataclass(frozen=True)
class _SentencePiece:
    """A BPE of characters: the score of each token that is merged from two, and whether texts begin with a space."""

    scores: Mapping[str, float]
    space_before: bool


def tokenizer_notes(spec: Spec) -> list[str]:
    """Notes for the report about the tokenizer of the GGUF file; UserError for files that are damaged."""
    if spec.outputs.gguf is None or not isinstance(spec.model.source, FolderSource):
        return []
    folder = spec.model.source.path
    vocabulary = getattr(completed_config(spec.model.source), "vocab_size", 0)
    if _kind(_read(folder), vocabulary) is not None:
        return []
    reason = (
        f"{TOKENIZER_FILE} is neither a byte-level BPE of Llama 3 or Qwen2 nor a BPE of SentencePiece, within the "
        "vocabulary"
        if (folder / TOKENIZER_FILE).is_file()
        else f"{TOKENIZER_FILE} not found"
    )
    return [f"the GGUF file has no tokenizer, {reason}: the program that runs it needs token ids as input"]


def add_tokenizer(package: Any, writer: Any, folder: Path, vocabulary: int) -> None:  # Any: gguf is optional
    """Writes the tokenizer of a folder to the header, or an entry that there is none; tokens are padded to
    `vocabulary`.
    """
    described = _read(folder)
    kind = _kind(described, vocabulary)
    if kind is None:
        writer.add_tokenizer_model("none")
        return
    types, model = package.TokenType, described["model"]
    added = {token["id"]: token for token in described["added_tokens"]}
    texts = {index: text for text, index in model["vocab"].items()}
    texts |= {index: token["content"] for index, token in added.items()}
    found = [types.NORMAL if index in texts else types.UNUSED for index in range(vocabulary)]
    if isinstance(kind, _SentencePiece):
        for text, index in model["vocab"].items():
            found[index] = types.BYTE if text in _BYTES else types.NORMAL
    for index, token in added.items():
        found[index] = types.CONTROL if token["special"] else types.USER_DEFINED
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(vocabulary)]
    if isinstance(kind, _SentencePiece):
        if model["unk_token"] is not None:
            found[model["vocab"][model["unk_token"]]] = types.UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([kind.scores.get(token, 0.0) for token in tokens])
        writer.add_add_space_prefix(kind.space_before)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind.split)
    writer.add_token_list(tokens)
    writer.add_token_types(found)
    try:
        special = package.SpecialVocab(folder, load_merges=isinstance(kind, _ByteLevel), n_vocab=vocabulary)
        special.add_to_gguf(writer, quiet=True)
    except USER_CODE_RAISES as err:
        raise damaged(folder, "the tokenizer's special tokens or chat template", err) from err


def _read(folder: Path) -> Mapping[str, Any]:  # Any: the JSON content of the file
    """The content of tokenizer.json, empty if the file does not exist; UserError for damaged files."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return {}
    for name in _OTHER_FILES:
        if (folder / name).is_file():
            read_beside(folder / name)
    described: Mapping[str, Any] = json.loads(read_tokenizer(path))  # Any: as above
    return described


def _kind(
    described: Mapping[str, Any], vocabulary: int
) -> _ByteLevel | _SentencePiece | None:  # Any: as in the file
    """The tokenizer in a form of llama.cpp; None if llama.cpp has no such form, or for more tokens than the model
    has.
    """
    if not described or described["model"]["type"] != "BPE":
        return None
    ids = [*described["model"]["vocab"].values(), *(token["id"] for token in described["added_tokens"])]
    if max(ids, default=0) >= vocabulary:
        return None
    return _byte_level(described) or _sentence_piece(described)


def _byte_level(described: Mapping[str, Any]) -> _ByteLevel | None:  # Any: as in the file
    before = described["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    split = _SPLITS.get(steps[0]["pattern"].get("Regex"))
    return _ByteLevel(split) if split else None


def _sentence_piece(described: Mapping[str, Any]) -> _SentencePiece | None:  # Any: as in the file
    model, space_before = described["model"], _space_before(described)
    plain = not any(model[name] for name in _CHANGES)
    if space_before is None or not plain or not model["byte_fallback"] or not model["vocab"].keys() >= _BYTES:
        return None
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    made = [token for token, _ in groupby("".join(pair) for pair in pairs)]
    special = {token["content"] for token in described["added_tokens"]} | _BYTES
    wanted = {
        pair for token in model["vocab"] if token not in special for pair in _ways(token, model["vocab"])
    }
    if len(set(made)) != len(made) or not wanted <= set(pairs):
        return None
    return _SentencePiece({token: -float(place) for place, token in enumerate(made)}, space_before)


def _space_before(described: Mapping[str, Any]) -> bool | None:  # Any: as in the file
    """True if a space is added before texts; None unless all spaces are replaced by the sign of SentencePiece."""
    normalizer, before = described["normalizer"] or {}, described["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    if not before and steps in ([{"type": "Prepend", "prepend": _SPACE}, _SPACES], [_SPACES]):
        return len(steps) == 2
    if not normalizer and before.get("type") == "Metaspace" and before["replacement"] == _SPACE:
        return None if before["split"] else bool(before["prepend_scheme"] != "never")
    return None


def _ways(token: str, vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """All splits of a token into two tokens."""
    for end in range(1, len(token)):
        if token[:end] in vocab and token[end:] in vocab:
            yield token[:end], token[end:]
