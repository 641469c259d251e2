"""The language model of the examples, on the trained weights."""

import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
EXAMPLE = ROOT / "examples" / "language_model"


@pytest.mark.skipif(
    not (SHARED / "models" / "stories260k_llama.safetensors").exists(),
    reason="the trained networks are not in ../shared",
)
def test_perplexity_stays_low_in_eight_bits_and_bounded_in_four(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "tokenizer", raising=False)
    example = runpy.run_path(str(EXAMPLE / "perplexity.py"))
    example["main"].__globals__["WINDOWS"] = 2
    example["main"]()
    rows = {line[:20].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    story = {name: float(row[-4]) for name, row in rows.items() if name.startswith(("float", "int"))}
    assert story["float32"] < 1.6
    assert story["int8, groups of 32"] < story["float32"] * 1.01
    assert story["int4, groups of 32"] < story["float32"] * 1.2
