"""A training that is interrupted and resumed gives the same bytes: for each teacher, loss, trainable form and schedule.

A line of `TRAININGS` is a training; a new teacher, loss, form or schedule needs one, or the last test fails.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxpress.compiler import compile_model
from fxpress.ir import Graph, run
from fxpress.passes import Context, find_pass
from fxpress.specs.options import FeatureKind, FinetuneOptions, SparsifyOptions
from fxpress.specs.options.distillation import Distillation, NamedTeacher

Settings = Mapping[str, Any]  # any: keys of a spec

TOKENS, LENGTH, WIDTH = 12, 6, 16
CLASSES = 4
OTHER = {"teacher": {"source": "other.py:Net"}}
FORMS: dict[str, Settings] = {  # options of finetune
    "labels": {"distill": None, "warmup": 1},
    "augmented": {"augment": {"mask": "20 %", "mask_id": 0}},
    "sgd": {"optimizer": "sgd", "keep": ["head"]},
    "sign_sgd": {"optimizer": "sign_sgd", "learning_rate": 1e-3},
    "mse": {"loss": "mse", "distill": None},
    "captured": {"distill": {"teacher": "captured", "outputs": "kl"}},
    "virtual": {"distill": {"teacher": "virtual"}},
    "other": {"distill": {**OTHER, "outputs": "cosine"}},
    "outputs mse": {"distill": {"outputs": "mse"}},
    "features": {
        "distill": {
            **OTHER,
            "layers": [{"layer": "up", "loss": kind} for kind in ("mse", "cosine", "attention", "relation")],
        }
    },
    "peers": {"distill": {"teacher": "peers", "peer_weights": "mean"}},
    "peers, attention": {"distill": {"teacher": "peers", "peers": 3, "peer_weights": "attention"}},
    "exits": {"distill": {"teacher": "exits", "exits": ["up"]}},
    "adversarial": {"distill": {**OTHER, "layers": [{"layer": "down", "loss": "adversarial"}]}},
    "learned pairs": {"distill": {**OTHER, "layers": ["up", "down"], "matching": "attention"}},
    "norms_and_biases": {"trains": "norms_and_biases"},
    "lora": {"trains": {"lora": {"rank": 2}}},
    "prompts": {"trains": {"prompts": {"count": 2}}},
    "adapter": {"trains": {"adapter": {"count": 2}}},
}
TRAINED = {"epochs": 3, "batch": 8, "learning_rate": 1e-2, "validation": "20 %"}
TRAININGS: dict[str, tuple[Settings, ...]] = {  # passes; the last one is interrupted
    **{name: ({"pass": "finetune", **TRAINED, **form},) for name, form in FORMS.items()},
    "integers": (
        {"pass": "fuse"},
        {"pass": "quantize", "weights": "int4"},
        {"pass": "finetune", **TRAINED},
    ),
    "stochastic_precision": (
        {"pass": "fuse"},
        {"pass": "quantize", "weights": "binary"},
        {
            "pass": "finetune",
            **TRAINED,
            "distill": {"teacher": "stochastic_precision", "outputs": "cosine"},
        },
    ),
    "codewords": ({"pass": "product_quantize"}, {"pass": "finetune", **TRAINED}),
    "stored": ({"pass": "weight_only", "weights": "int4"}, {"pass": "finetune", **TRAINED}),
    "stored, lora": (
        {"pass": "weight_only", "weights": "nf4"},
        {"pass": "finetune", **TRAINED, "trains": {"lora": {"rank": 2}}},
    ),
    "cubic": (
        {"pass": "sparsify", "sparsity": "60 %", "schedule": "cubic", "steps": 2, "finetune": TRAINED},
    ),
    "surgery": ({"pass": "sparsify", "sparsity": "60 %", "schedule": "surgery", "finetune": TRAINED},),
    "learned": ({"pass": "sparsify", "sparsity": "60 %", "schedule": "learned", "finetune": TRAINED},),
    "learned_masks": (
        {"pass": "sparsify", "sparsity": "60 %", "schedule": "learned_masks", "finetune": TRAINED},
    ),
    "pruned": ({"pass": "prune", "budget": {"macs": "80 %"}, "steps": 2, "finetune": TRAINED},),
}


class Net(nn.Module):
    """Tokens to scores [n, classes], with attention and a feed-forward layer; `width` of the latter."""

    def __init__(self, width: int = 24, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.qkv, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        n, time, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, time, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, time, WIDTH)
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean(1))


@cache
def captured(width: int = 24, seed: int = 0, *, is_dynamic: bool = False) -> Graph:
    lengths = {"dynamic": {"tokens": {1: "time"}}} if is_dynamic else {}
    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    network = Net(width, seed).eval()
    return compile_model(network, inputs={"tokens": tokens}, passes=["clean"], **lengths).graph


class KilledError(Exception):
    pass


def context(original: Graph, loss: str, *, dies_at: int | None = None) -> Context:
    """40 texts with classes; the call `dies_at` of `progress` raises KilledError."""
    texts = torch.randint(0, TOKENS, (40, LENGTH), generator=torch.Generator().manual_seed(1)).split(1)
    scores = [run(captured(seed=2), [text])[0] for text in texts]
    labels = scores if loss == "mse" else [score.argmax(1) for score in scores]
    calls = 0

    def progress(label: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise KilledError
        CALLS[0] = calls

    return Context(
        [(text,) for text in texts],
        labels,
        original=original,
        teacher=lambda _: captured(32, 3),
        progress=progress,
    )


CALLS = [0]  # of `progress` in the last run


def trained(
    passes: tuple[Settings, ...], checkpoint: Path | None = None, *, dies_at: int | None = None
) -> object:
    """Graph and report of the last pass."""
    *before, last = passes
    is_dynamic = "prompts" in str(last)
    original = captured(is_dynamic=is_dynamic)
    graph = captured(seed=1, is_dynamic=is_dynamic)
    settings = last.get("finetune", last)
    surroundings = context(original, settings.get("loss", ""))
    for step in before:
        graph = find_pass(step["pass"])(graph, context=surroundings, **_options(step)).graph
    if checkpoint is not None:
        settings = {**settings, "checkpoint": str(checkpoint)}
        last = {**last, "finetune": settings} if "finetune" in last else settings
    result = find_pass(passes[-1]["pass"])(
        graph, context=context(original, settings.get("loss", ""), dies_at=dies_at), **_options(last)
    )
    return result.graph, result.report


def _options(step: Settings) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name != "pass"}


@pytest.mark.parametrize("name", TRAININGS)
def test_an_interrupted_training_is_resumed_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    passes = TRAININGS[name]
    whole = trained(passes)
    calls = CALLS[0]
    with pytest.raises(KilledError):
        trained(passes, tmp_path / "state.pt", dies_at=calls // 2 + 1)
    assert list(tmp_path.iterdir()), "interrupted before the first epoch was stored"
    assert trained(passes, tmp_path / "state.pt") == whole


def test_every_teacher_loss_form_and_schedule_has_a_line() -> None:
    written = str(TRAININGS)
    distillation, finetune = Distillation.model_fields, FinetuneOptions.model_fields
    kinds = [
        *get_args(NamedTeacher),
        *get_args(FeatureKind),
        *get_args(distillation["outputs"].annotation),
        *get_args(distillation["peer_weights"].annotation),
        *get_args(finetune["optimizer"].annotation),
        *get_args(SparsifyOptions.model_fields["schedule"].annotation),
    ]
    for form in get_args(finetune["trains"].annotation):
        kinds += get_args(form) or form.model_fields
    missing = [kind for kind in kinds if f"'{kind}'" not in written and kind not in ("all", "adamw")]
    assert not missing
