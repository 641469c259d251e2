"""Requirements of nested options: missing data, labels and files are reported together, at the options that need
them.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import SpecError, check_spec, load_spec

Write = Callable[..., Path]
BUDGET = "budget: {macs: 60 %}"


def spec_with(sound: str, step: str, calibration: str) -> str:
    text = sound.replace("  - pass: fuse\n  - pass: quantize\n", f"  - {step}\n")
    return text.replace("  calibration: {file: train.npz}", calibration)


@pytest.mark.parametrize(
    ("step", "asking", "column"),
    [
        (f"{{pass: prune, {BUDGET}, score: taylor}}", "passes[0].score", 48),
        (f"{{pass: prune, {BUDGET}, score: activation}}", "passes[0].score", 48),
        (f"{{pass: prune, {BUDGET}, compensation: [batchnorm]}}", "passes[0].compensation", 55),
        (f"{{pass: prune, {BUDGET}, bits: [4, 8]}}", "passes[0].bits", 47),
        (f"{{pass: prune, {BUDGET}, finetune: {{epochs: 1}}}}", "passes[0].finetune", 51),
        ("{pass: sparsify, sparsity: 50 %, finetune: {epochs: 1}}", "passes[0].finetune", 48),
    ],
)
def test_a_spec_without_samples_is_told_which_option_needs_them(
    write: Write, sound: str, step: str, asking: str, column: int
) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(spec_with(sound, step, "  transform: {}")))
    (problem,) = caught.value.problems
    assert (problem.code, problem.place.line, problem.place.column) == ("S304", 11, column)
    assert problem.message == f"{asking}: this needs data.calibration"


@pytest.mark.parametrize(
    ("step", "asking"),
    [
        ("{pass: finetune, distill: null}", "passes[0].distill"),
        ("{pass: finetune, loss: 'net.py:loss'}", "passes[0].loss"),
        (f"{{pass: prune, {BUDGET}, finetune: {{distill: null}}}}", "passes[0].finetune.distill"),
        ("{pass: sparsify, sparsity: 50 %, finetune: {loss: 'net.py:loss'}}", "passes[0].finetune.loss"),
    ],
)
def test_a_loss_against_labels_needs_them(write: Write, sound: str, step: str, asking: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(spec_with(sound, step, "  calibration: {file: train.npz}")))
    assert [(p.code, p.message) for p in caught.value.problems] == [
        ("S304", f"{asking}: this needs data.calibration.labels")
    ]
    labelled = "  calibration: {file: train.npz, labels: y}"
    assert load_spec(write(spec_with(sound, step, labelled))).spec


def test_all_that_is_missing_is_told_at_once(write: Write, sound: str) -> None:
    step = f"{{pass: prune, {BUDGET}, score: taylor, bits: [4, 8], finetune: {{distill: null}}}}"
    with pytest.raises(SpecError) as caught:
        load_spec(write(spec_with(sound, step, "  transform: {}")))
    asking = [problem.message.partition(":")[0] for problem in caught.value.problems]
    assert asking == ["passes[0].score", "passes[0].bits", "passes[0].finetune", "passes[0].finetune.distill"]


def test_files_of_options_inside_are_looked_for(write: Write, sound: str) -> None:
    write("def Net(): ...\n", "net.py")
    step = f"{{pass: prune, {BUDGET}, finetune: {{loss: 'losses.py:mine', checkpoint: run.ckpt}}}}"
    path = write(spec_with(sound, step, "  calibration: {source: 'net.py:Net', labels: y}"))
    with pytest.raises(SpecError) as caught:
        check_spec(path)
    (problem,) = caught.value.problems
    assert problem.code == "S311" and problem.message.startswith("passes[0].finetune.loss: file not found:")


def test_layers_that_options_inside_name_are_matched(write: Write, sound: str) -> None:
    step = f"{{pass: prune, {BUDGET}, finetune: {{keep: [head]}}}}"
    loaded = load_spec(write(spec_with(sound, step, "  calibration: {file: train.npz}")))
    loaded.check_layers(["stem", "head"])
    with pytest.raises(SpecError, match=r"passes\[0\]\.finetune\.keep\[0\].*S401"):
        loaded.check_layers(["stem", "tail"])
