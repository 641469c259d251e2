"""The passes on five trained networks with real data: accuracy, error, and the channels that are dead."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxpress.compiler import open_session, run_passes
from fxpress.compiler.data import run_samples, snr_db
from fxpress.ir import Graph, run_integer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
SAMPLES = 128

pytestmark = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason=f"the samples behind the documented figures are not in {SHARED}",
)


@dataclass(frozen=True)
class Outcome:
    """A network through the passes of its spec: graphs by pass, results in float and integers, labels."""

    graphs: dict[str, Graph]
    real: Tensor
    integer: Tensor
    labels: Tensor | None

    def right(self, outputs: Tensor) -> int:
        assert self.labels is not None
        return int((outputs.argmax(1) == self.labels).sum())

    @property
    def agreement(self) -> float:
        return float((self.real.argmax(1) == self.integer.argmax(1)).double().mean())


@lru_cache
def outcome(name: str, samples: int = SAMPLES) -> Outcome:
    session = open_session(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml")
    assert session.evaluation is not None
    evaluation = session.evaluation.first(samples)
    stages = run_passes(session)
    with torch.no_grad():
        (real,) = run_samples(session.captured, evaluation)
        (integer,) = run_samples(stages[-1].graph, evaluation, interpreter=run_integer)
    return Outcome({s.name: s.graph for s in stages}, real, integer, evaluation.labels)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("ic", 29, 12),
        ("kws", 30, 12),
        pytest.param("vww", 84, 30, marks=pytest.mark.slow),
        ("ad", 28, 10),
        ("sww", 18, 10),
    ],
)
def test_every_norm_activation_and_residual_is_fused(name: str, before: int, after: int) -> None:
    graphs = outcome(name).graphs
    left = {node.op.name for node in graphs["fuse"].nodes} & {"batch_norm", "relu", "add", "pad"}
    assert left == set()
    assert len(graphs["fuse"].nodes) <= after < before


def test_image_classification_loses_at_most_one_answer() -> None:
    ic = outcome("ic")
    assert abs(ic.right(ic.integer) - ic.right(ic.real)) <= 1
    assert snr_db(ic.real, ic.integer) > 30


def test_keyword_spotting_reaches_the_reference() -> None:
    kws = outcome("kws", 499)
    assert kws.right(kws.real) == 455
    assert kws.right(kws.integer) >= 451


def test_the_wake_word_is_told_as_in_float() -> None:
    sww = outcome("sww")
    assert sww.right(sww.integer) == sww.right(sww.real) == 41


def test_the_person_detector_decides_as_in_float() -> None:
    vww = outcome("vww")
    assert vww.agreement >= 0.98
    assert snr_db(vww.real, vww.integer) >= 20


def test_the_autoencoder_is_near_its_float_form() -> None:
    ad = outcome("ad")
    assert snr_db(ad.real, ad.integer) >= 20


def test_half_of_the_person_detector_is_dead() -> None:
    graphs = outcome("vww").graphs
    assert graphs["quantize"].macs == 7_489_664
    assert graphs["remove_dead_channels"].macs < 3_800_000
    assert weight_bytes(graphs["quantize"]) == 208_112
    assert weight_bytes(graphs["remove_dead_channels"]) < 30_000


@pytest.mark.parametrize("name", ["ic", "kws", "ad", "sww"])
def test_nothing_is_dead_in_the_other_networks(name: str) -> None:
    graphs = outcome(name).graphs
    assert graphs["remove_dead_channels"].macs == graphs["quantize"].macs


def weight_bytes(graph: Graph) -> int:
    return sum(
        v.type.storage_bytes for v in graph.constants if v.type.quantization and v.type.quantization.bits == 8
    )
