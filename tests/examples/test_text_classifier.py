"""The text classifier: its data as obtained, and the pruned int8 network against the float network."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fxpress.compiler import compile_model

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "text_classifier"
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def obtain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("messages", "network"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("text_classifier_obtain", FOLDER / "obtain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_collection_is_split_once_by_label(
    obtain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"ham\tsee you at {i}, café" for i in range(20)] + [f"spam\tWIN {i} now!" for i in range(10)]
    (tmp_path / "collection").write_text("\n".join([*lines, lines[0]]))
    output = tmp_path / "sms_spam.npz"
    obtain.main(["--output", str(output), "--source", (tmp_path / "collection").as_uri()])
    with np.load(output) as arrays:
        assert (arrays["y_train"].tolist().count(0), arrays["y_train"].tolist().count(1)) == (16, 8)
        assert (arrays["y_test"].tolist().count(0), arrays["y_test"].tolist().count(1)) == (4, 2)
        text = bytes(arrays["text_test"][: arrays["offset_test"][1]]).decode()
    assert text.startswith(("see you at", "WIN"))
    messages = sys.modules["messages"]
    monkeypatch.setattr(messages, "FILE", output)
    monkeypatch.setattr(messages, "VALIDATION", 4)
    ids = messages.evaluation()["ids"]
    assert ids.shape == (6, 48) and (ids[:, 0] == messages.FIRST).all() and ids.max() < messages.VOCABULARY


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)
def test_a_pruned_integer_classifier_is_nearly_as_good(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    command = [sys.executable, FOLDER / "train.py", "--epochs", "1", "--messages", "512", "--output", weights]
    subprocess.run(command, check=True, capture_output=True)
    overrides = [f"model.weights={weights}", "data.calibration.samples=64", "data.evaluation.samples=200"]
    overrides += ["passes[3].epochs=0", "passes[6].epochs=0", "passes[5].samples=32"]
    overrides += [f"passes[{index}].samples=32" for index in (1, 2)]
    compiled = compile_model(FOLDER / "small.yaml", overrides=overrides)
    whole, *_, integer = (measured.value for measured in compiled.report.measurements)
    assert compiled.report.macs_after < 0.5 * compiled.report.macs_before
    assert whole > 0.9 and integer > whole - 0.05
