"""Text from a compiled language model with caches: prompts, greedy and sampled tokens, perplexity.

A prompt is passed in blocks, then one token at a time; each call continues the caches of the previous call. Sampling
is the usual one: softmax(logits / temperature), the most probable token for temperature 0.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..passes.progress_callback import Progress, silent
from ..specs.model_folder import POSITION, TOKEN_IDS, TOKENIZER_FILE
from ..specs.root_error import ArgumentError, expect
from .errors import Problem, UserError, first_line, shorten
from .interface import Interface, Port
from .model_folder import EXTRA

_BLOCK = 512  # tokens of a prompt in one call; their logits are in memory together


@dataclass(frozen=True)
class GeneratedText:
    """Tokens after a prompt, with the text of both if there is a tokenizer, and the times of the two phases.

    `first` is the time of the prompt and its first token, `rest` that of all other tokens, in seconds. `is_full` is
    True if the caches were full.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str | None
    first: float
    rest: float
    is_full: bool


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood of `tokens` tokens, in independent windows of `window` tokens."""

    value: float
    tokens: int
    window: int


class TextModel:
    """An emitted torch module with caches, and the tokenizer of its folder if there is one.

    UserError for a network without caches, and for a block size that cannot continue a text.
    """

    def __init__(self, module: nn.Module, interface: Interface, directory: Path, name: str) -> None:
        described = interface.generation
        if described is None:
            fact, advice = "has no caches", "compile the folder of a language model with `model.cache`"
            raise UserError(Problem("R418", name, fact, advice))
        ids = _port(interface, TOKEN_IDS)
        self._module, self._name, self._stops = module, name, frozenset(described.stop_tokens)
        self._names, self._outputs = interface.input_names, interface.output_names
        self._states = dict(interface.state)
        self._block = min(_BLOCK, described.length) if ids.dynamic else ids.shape[1]
        if not ids.dynamic and self._block > 1:
            fact = f"takes blocks of {self._block} tokens, not single tokens"
            raise UserError(Problem("R418", name, fact, "remove `inputs` of the model, or give it one token"))
        self._empty = {port.name: port.type for port in interface.inputs if port.name in interface.state}
        self._file = directory / TOKENIZER_FILE
        self.length = described.length
        self.reset()

    def reset(self) -> None:
        """Empties the caches."""
        self._position = 0
        self._caches = {
            name: torch.zeros(type.shape, dtype=type.dtype.torch) for name, type in self._empty.items()
        }

    def feed(self, ids: Sequence[int], *, progress: Progress = silent) -> Iterator[Tensor]:
        """Logits [n, vocabulary] of each block of tokens, which continue the earlier ones; UserError if there are too
        many.
        """
        if self._position + len(ids) > self.length:
            fact = f"{self._position + len(ids):,} tokens, but the caches hold {self.length:,}"
            raise UserError(Problem("R419", self._name, fact, "give fewer, or raise `model.cache.length`"))
        for start in range(0, len(ids), self._block):
            yield self._call(torch.tensor([ids[start : start + self._block]]))
            progress("prompt", min(start + self._block, len(ids)), len(ids))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with those that the tokenizer adds; UserError without a tokenizer."""
        return [int(i) for i in self._tokenizer().encode(text).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; UserError without a tokenizer."""
        return str(self._tokenizer().decode(list(ids)))

    @property
    def has_tokenizer(self) -> bool:
        """Whether the output directory has a tokenizer."""
        return self._file.is_file()

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int] | Tensor,
        *,
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Progress = silent,
    ) -> GeneratedText:
        """At most `tokens` tokens after a prompt; generation also stops at the end of the text and with full caches.

        ArgumentError for invalid arguments, UserError for a prompt that does not fit.
        """
        prompt, call = _ids(prompt, "generate(prompt=...)"), "generate(tokens=...)"
        expect(tokens, int, call, "a number of tokens")
        if tokens < 1:
            raise ArgumentError(call, f"expects at least one token, got {tokens}")
        expect(temperature, (int, float), "generate(temperature=...)", "a number")
        if not (isfinite(temperature) and temperature >= 0):
            raise ArgumentError("generate(temperature=...)", f"expects a number from 0, got {temperature}")
        if not prompt:
            fact = "the prompt has no tokens"
            raise UserError(Problem("R419", self._name, fact, "give a text, or ids"))
        self.reset()
        generator = torch.Generator().manual_seed(seed)
        started = perf_counter()
        chosen = [_chosen(self._last(prompt, progress), temperature, generator)]
        between = perf_counter()
        room = self.length - len(prompt) + 1  # the last token is not passed to the network
        while len(chosen) < min(tokens, room) and chosen[-1] not in self._stops:
            chosen.append(_chosen(self._last(chosen[-1:], silent), temperature, generator))
            progress("tokens", len(chosen), tokens)
        ended = perf_counter()
        text = self.decode([*prompt, *chosen]) if self.has_tokenizer else None
        is_full = len(chosen) == room < tokens and chosen[-1] not in self._stops
        return GeneratedText(tuple(prompt), tuple(chosen), text, between - started, ended - between, is_full)

    @torch.inference_mode()
    def perplexity(self, ids: Sequence[int] | Tensor, *, progress: Progress = silent) -> Perplexity:
        """The perplexity of a text in windows as long as the caches; the first token of each is not predicted."""
        ids = _ids(ids, "perplexity(ids=...)")
        if len(ids) < 2:
            fact = f"the text has {len(ids)} tokens; the first is not predicted"
            raise UserError(Problem("R419", self._name, fact, "give a longer text"))
        total, count = 0.0, 0
        for start in range(0, len(ids) - 1, self.length):
            self.reset()
            window, seen = ids[start : start + self.length], 0
            for logits in self.feed(window):
                wanted = torch.tensor(window[seen + 1 : seen + 1 + len(logits)], dtype=torch.int64)
                loss = nn.functional.cross_entropy(logits[: len(wanted)].double(), wanted, reduction="sum")
                total, count, seen = total + float(loss), count + len(wanted), seen + len(logits)
                progress("tokens", start + seen, len(ids))
        return Perplexity(exp(total / count), count, min(self.length, len(ids)))

    def _last(self, ids: Sequence[int], progress: Progress) -> Tensor:
        """Logits after the last of some tokens."""
        (logits,) = deque(self.feed(ids, progress=progress), maxlen=1)
        return logits[-1]

    def _call(self, ids: Tensor) -> Tensor:
        given = {TOKEN_IDS: ids, POSITION: torch.tensor([self._position]), **self._caches}
        try:
            results = self._module(*(given[name] for name in self._names))
        except IndexError as err:
            low, high = int(ids.min()), int(ids.max())
            fact = f"token {low if low < 0 else high} is not in the vocabulary of the model"
            raise UserError(Problem("R419", self._name, fact, "give ids of the model's tokenizer")) from err
        found = dict(zip(self._outputs, results, strict=True))
        self._caches = {name: found[output] for name, output in self._states.items()}
        self._position += ids.shape[1]
        logits: Tensor = results[0][0]
        return logits

    def _tokenizer(self) -> Any:  # Any: tokenizers is optional, and not seen by mypy
        if not self.has_tokenizer:
            fact = f"has no {TOKENIZER_FILE}: the folder of the model had none"
            raise UserError(Problem("R420", self._name, fact, "give token ids: `--prompt-ids 1,15,27`"))
        try:
            return importlib.import_module("tokenizers").Tokenizer.from_file(str(self._file))
        except ImportError as err:
            raise UserError(Problem("R420", self._name, "needs the package tokenizers", EXTRA)) from err
        except Exception as err:  # tokenizers raises this class itself
            fact, place = f"cannot be read: {first_line(err)}", shorten(str(self._file))
            raise UserError(Problem("R420", place, fact, "correct the file of the folder")) from err


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; UserError if it cannot be read."""
    place = shorten(str(path))
    try:
        return path.read_text(encoding="utf-8")
    except OSError as err:
        raise UserError(Problem("R422", place, f"cannot be read: {err.strerror}", "check the path")) from err
    except UnicodeDecodeError as err:
        fact = f"is not UTF-8 from byte {err.start}"
        raise UserError(Problem("R422", place, fact, "convert the file")) from err


def _port(interface: Interface, name: str) -> Port:
    return next(port for port in interface.inputs if port.name == name)


def _ids(found: object, place: str) -> list[int]:
    """Token ids; ArgumentError for anything but a sequence or a tensor of integers."""
    items = found.tolist() if isinstance(found, Tensor) else found
    if not isinstance(items, Sequence) or isinstance(items, str) or not all(type(i) is int for i in items):
        raise ArgumentError(place, "expects a list of token ids", "encode text with `encode`")
    return list(items)


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The most probable token, or a sampled one."""
    if not temperature:
        return int(logits.argmax())
    shares = (logits.double() / temperature).softmax(0)
    return int(torch.multinomial(shares, 1, generator=generator))
