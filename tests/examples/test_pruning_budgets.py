"""The example of budgets: counts equal predictions, and a complete row is not computed again."""

import json
import os
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))


@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)
@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed")
@pytest.mark.slow
@pytest.mark.parametrize(("network", "epochs"), [("ic", 1), ("kws", 0)])
def test_costs_fall_as_predicted(
    network: str, epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "pruning" / "budgets.py"))["main"]
    arguments = ["50", "--network", network, "--of", "cycles", "--epochs", str(epochs), "--samples", "32"]
    arguments += ["--output", str(tmp_path)]
    main(arguments)
    assert "CPU s" in capsys.readouterr().out
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    trained = ["fine-tuned"] if epochs else []
    assert list(result["correct"]) == ["whole", "pruned", "repaired", *trained, "int8"]
    for name, predicted in result["predicted"].items():
        assert predicted == pytest.approx(result["counted"][name], rel=0.1)
    assert result["macs"]["int8"] < 0.6 * result["macs"]["whole"]
    main(arguments)
    shown = capsys.readouterr().out
    assert "CPU s" not in shown and "50 % of cycles" in shown
