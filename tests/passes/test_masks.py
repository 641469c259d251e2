"""Masks of a softmax: however they are written, the scores keep their range and the softmax computes on integers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxpress.compiler import capture
from fxpress.compiler.data import snr_db
from fxpress.ir import DType, Graph, run, run_integer
from fxpress.ir.ops.attention import Attention
from fxpress.passes import Context, PassReport, find_pass
from fxpress.specs.options import CleanOptions, FuseOptions, QuantizeOptions

LENGTH, WIDTH = 6, 8
LOWEST = torch.finfo(torch.float32).min
KEEP = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
NOTHING_IN_ROW_0 = KEEP.roll(1, 0)
ALIBI = -0.5 * (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).float()


class Net(nn.Module):
    """Products of queries and keys, weights by `weigh(scores, mask)`, mean of values."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.weigh = weigh

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        y: Tensor = self.out(self.weigh(scores, mask) @ self.value(x))
        return y


def never(keep: Tensor, number: float, kept: Tensor | float = 0.0) -> Tensor:
    return torch.where(keep, kept, number)


def added(mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, _: torch.softmax(scores + mask, -1)


def filled(keep: Tensor, number: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, _: torch.softmax(scores.masked_fill(~keep, number), -1)


def in_heads(scores: Tensor, ids: Tensor) -> Tensor:
    heads = torch.stack([scores, -scores], 1).masked_fill((ids == 0)[:, None, None], LOWEST)
    return torch.softmax(heads.view(-1, LENGTH, LENGTH), -1).view(-1, 2, LENGTH, LENGTH).mean(1)


def causal_and_padding(scores: Tensor, ids: Tensor) -> Tensor:
    mask = never(KEEP, -1e9) + ((ids == 0).float() * -1e9)[:, None]
    return torch.softmax(scores + mask, -1)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{f"added {number:g}": added(never(KEEP, number)) for number in (-inf, -1e4, LOWEST, -100.0)},
    "added beside slopes": added(never(KEEP, -inf, ALIBI)),
    "added in one row": added(never(KEEP[3:4], -1e9)),
    "added, a row without keys": added(never(NOTHING_IN_ROW_0, -1e4)),
    "filled -inf": filled(KEEP, -inf),
    "filled, a row without keys": filled(NOTHING_IN_ROW_0, -1e9),
    "subtracted": lambda s, _: torch.softmax(s * KEEP.float() - 1e4 * (1 - KEEP.float()), -1),
    "scaled afterwards": lambda s, _: torch.softmax((s + never(KEEP, -1e9)) * 0.5, -1),
    "bounded": lambda s, _: torch.softmax((s + never(KEEP, LOWEST)).clamp(min=LOWEST), -1),
    "twice": lambda s, _: torch.softmax(
        (s + never(KEEP, -1e9)).masked_fill(~KEEP.T & ~KEEP.roll(1, 1), -inf), -1
    ),
    "along another dimension": lambda s, _: torch.softmax(s + never(KEEP.T, -1e9), 1),
    "tokens filled": lambda s, ids: torch.softmax(s.masked_fill((ids == 0)[:, None], -1e9), -1),
    "tokens chosen": lambda s, ids: torch.softmax(s + torch.where(ids == 0, -inf, 0.0)[:, None], -1),
    "tokens times": lambda s, ids: torch.softmax(s + (1.0 - (ids != 0).float()[:, None]) * -10000.0, -1),
    "tokens by logarithm": lambda s, ids: torch.softmax(s + ((ids != 0).float()[:, None] + 1e-45).log(), -1),
    "tokens in heads": in_heads,
    "causal and tokens": causal_and_padding,
    "floats": lambda s, ids: torch.softmax(s + ids[:, None] * 1.0, -1),
    "floats of -inf": lambda s, mask: torch.softmax(s + mask[:, None], -1),
    "floats subtracted": lambda s, ids: torch.softmax(s - (-ids)[:, None], -1),
}


def samples(form: str) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(24):
        x = torch.randn(1, LENGTH, WIDTH, generator=generator)
        used = torch.arange(LENGTH)[None] < index % LENGTH + 1
        hidden = -inf if form.endswith("-inf") else -1e9
        mask = torch.where(used, 0.0, hidden) if form.startswith("floats") else used.to(torch.int64)
        found.append((x, mask))
    return found


def quantized(form: str) -> tuple[nn.Module, Graph, PassReport]:
    torch.manual_seed(0)
    net, data = Net(FORMS[form]).eval(), samples(form)
    graph, context = capture(net, data[0]).graph, Context(calibration=data)
    for options in (CleanOptions(), FuseOptions()):
        graph = find_pass(options.pass_)(graph, options, context).graph
    result = find_pass("quantize")(graph, QuantizeOptions(), context)
    return net, result.graph, result.report


@pytest.mark.parametrize("form", FORMS)
def test_masked_scores_keep_their_precision_on_integers(form: str) -> None:
    net, graph, report = quantized(form)
    (masked,) = (node for node in graph.nodes if node.op.name in ("softmax", "attention"))
    assert masked.output.type.is_quantized
    is_causal = isinstance(masked.op, Attention) and masked.op.causal
    assert any(value.type.dtype is DType.BOOL for value in masked.operands) or is_causal
    assert report.applied["mask"] == 1 and report.warnings == ()
    with torch.no_grad():
        pairs = [(net(*sample), run_integer(graph, sample)[0]) for sample in samples(form)]
    assert snr_db(*(torch.cat(side) for side in zip(*pairs, strict=True))) > 31


def test_an_addend_that_hides_nothing_is_no_mask() -> None:
    form = "bias"
    FORMS[form] = added(never(KEEP, -3.0))
    _, graph, report = quantized(form)
    del FORMS[form]
    assert "mask" not in report.applied
    assert not any(value.type.dtype is DType.BOOL for node in graph.nodes for value in node.operands)


def test_the_mask_of_a_log_softmax_is_added_in_float() -> None:
    form = "log"
    FORMS[form] = lambda s, _: functional.log_softmax(s + never(KEEP, -1e4), -1).exp()
    _, graph, report = quantized(form)
    del FORMS[form]
    assert report.declined["mask"] == {
        "the result of log_softmax contains the numbers of its mask, which are added in float": 1
    }
    (log_softmax,) = (node for node in graph.nodes if node.op.name == "log_softmax")
    added_in = graph.producers[log_softmax.operands[0].name]
    assert added_in.op.name == "add" and not added_in.output.type.is_quantized


def test_masks_that_attention_reads_become_rows_and_kept_keys() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
            padding = torch.where(ids == 0, -inf, 0.0)
            y: Tensor = self.layer(x, src_mask=causal, src_key_padding_mask=padding)
            return y

    torch.manual_seed(0)
    net, data = Net().eval(), samples("tokens")
    graph, context = capture(net, data[0]).graph, Context(calibration=data)
    cleaned = find_pass("clean")(graph, CleanOptions(), context).graph
    after = find_pass("quantize")(cleaned, QuantizeOptions(), context).graph
    (attention,) = (node for node in after.nodes if isinstance(node.op, Attention))
    assert attention.output.type.is_quantized and attention.op == Attention(causal=True)
    assert attention.operand("mask").type.dtype is DType.BOOL
    with torch.no_grad():
        pairs = [(net(*sample), run_integer(after, sample)[0]) for sample in data]
    assert snr_db(*(torch.cat(side) for side in zip(*pairs, strict=True))) > 31


@pytest.mark.parametrize(("length", "least_db"), [(64, 30), (840, 22)])
def test_a_softmax_over_a_long_axis_has_steps_as_fine_as_its_results(length: int, least_db: int) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(x, -1) @ v

    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(4, length, generator=generator), torch.randn(length, 8, generator=generator))
        for _ in range(16)
    ]
    graph = capture(Net(), data[0]).graph
    after = find_pass("quantize")(graph, QuantizeOptions(), Context(calibration=data[:8])).graph
    pairs = [(run(graph, sample)[0], run_integer(after, sample)[0]) for sample in data[8:]]
    assert snr_db(*(torch.cat(side) for side in zip(*pairs, strict=True))) > least_db
