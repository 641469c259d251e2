"""Metrics: on the output that is chosen, with their units; labels and outputs that no metric fits are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.cli import main
from fxpress.compiler.compare import read_report
from fxpress.compiler.data import run_samples

HEAD = "return self.head(self.pool(self.stem(image)).flatten(1))"
OWN = "metric: metrics.py:gap"


def _edit(project: Path, name: str, old: str, new: str) -> None:
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new))


def _two_outputs(project: Path) -> None:
    """A network of boxes and scores: labels mean the second output."""
    _edit(
        project,
        "net.py",
        HEAD,
        "scores = " + HEAD.removeprefix("return ") + "\n        return scores[:, :4] * 2.0, scores",
    )


def _labels(project: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    arrays = dict(np.load(project / "data.npz"))
    np.savez(project / "data.npz", **(arrays | {"y": change(arrays["y"])}))


def test_the_output_that_is_named_is_measured_and_told(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = compile_model(project / "net.yaml").report.measurements
    _two_outputs(project)
    second = compile_model(project / "net.yaml", overrides=["data.evaluation.metric=snr"]).graph.output_names[
        1
    ]
    _edit(project, "net.yaml", "metric: top1", f"metric: top1, output: {second}")
    monkeypatch.chdir(project)
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    assert f"output {second}" in capsys.readouterr().out
    found = read_report(project / "out").measurements
    assert [(m.value, m.correct, m.unit, m.output) for m in found] == [
        (m.value, m.correct, "%", second) for m in right
    ]
    run = ["run", "out", "--on", "integer", "--data", "data.npz", "--input", "image=x", "--labels", "y"]
    assert main([*run, "--output", second]) == 0
    assert re.search(
        rf"top1 of {second} +{right[1].value:.2f} % \({right[1].correct}\)", capsys.readouterr().out
    )
    assert main([*run, "--output", "scores"]) == 2
    assert f"no output 'scores'; there are {found[0].output.replace(second, '')}" in capsys.readouterr().err
    assert main([*run[:-2], "--output", second]) == 2
    assert "R415" in capsys.readouterr().err


def test_a_metric_of_the_users_own_is_a_plain_number(project: Path) -> None:
    (project / "metrics.py").write_text(
        "def gap(output, labels):\n    return output.gather(1, labels[:, None]).mean() * 0 + len(labels) / 7\n"
    )
    _edit(project, "net.yaml", "metric: top1", OWN)
    found = compile_model(project / "net.yaml").report.measurements
    assert [m.stage for m in found] == ["float model", "integer"]
    assert {(m.metric, m.unit, m.text) for m in found} == {("gap", "", "3.429")}


def test_a_mean_squared_error_is_no_percentage(project: Path) -> None:
    _labels(project, lambda y: np.eye(5, dtype=np.float32)[y])
    _edit(project, "net.yaml", "metric: top1", "metric: mse")
    found = compile_model(project / "net.yaml").report.measurements
    assert [(m.stage, m.unit) for m in found] == [("float model", ""), ("integer", "")]
    assert all("%" not in m.text and float(m.text) == pytest.approx(m.value, rel=1e-3) for m in found)


def test_a_network_that_gives_the_number_of_the_class_is_measured_on_it(project: Path) -> None:
    right = compile_model(project / "net.yaml", overrides=["passes=[]"]).report.measurements
    _edit(project, "net.py", HEAD, HEAD + ".argmax(1)")
    found = compile_model(
        project / "net.yaml", overrides=["passes=[]", "outputs={torch: {}}"]
    ).report.measurements
    assert found[0].correct == right[0].correct


def test_an_exact_result_is_read_back_from_the_report(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit(project, "net.yaml", "metric: top1", "metric: snr")
    compiled = compile_model(project / "net.yaml", overrides=["passes=[]"])
    compiled.write(project / "out")
    assert read_report(project / "out").measurements == compiled.report.measurements
    assert compiled.report.measurements[0].text == "exact"
    assert main(["diff", str(project / "out"), str(project / "out")]) == 0


@pytest.mark.parametrize(
    ("result", "metric", "words"),
    [
        ("{}.sum()", "top1", "a single number, has no number for each class.*D110"),
        ("{}.sum(1)", "top1", "the output, 1, has no number for each class.*D110"),
        ("{}.sum(1)", "agreement", "has no number for each class.*D110"),
        ("{}.sum(1, keepdim=True)", "top1", "1x1, has no number for each class.*D110"),
        ("{} / 0 * 0", "snr", "is NaN or infinite in every element.*M122"),
    ],
)
def test_an_output_that_decides_nothing_is_refused(
    project: Path, result: str, metric: str, words: str
) -> None:
    _edit(project, "net.py", HEAD, "return " + result.format(HEAD.removeprefix("return ")))
    _edit(project, "net.yaml", "metric: top1", f"metric: {metric}")
    with pytest.raises(UserError, match=words):
        compile_model(project / "net.yaml")


def test_outputs_without_a_batch_or_of_booleans_decide_too(project: Path) -> None:
    right = compile_model(project / "net.yaml", overrides=["passes=[]"]).report.measurements[0].correct
    for result in ("[0]", " >= 1e9"):
        _edit(project, "net.py", HEAD, HEAD + result)
        found = compile_model(
            project / "net.yaml", overrides=["passes=[]", "outputs={torch: {}}"]
        ).report.measurements
        assert found[0].correct == (
            right if result == "[0]" else int((np.load(project / "data.npz")["y"] == 0).sum())
        )
        _edit(project, "net.py", HEAD + result, HEAD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + 1, "are not classes of .*: 5 in sample .*whole numbers from 0 to 4.*D109"),
        (
            lambda y: np.where(np.arange(len(y)) == 2, -1, y),
            "1 of 24 labels are not classes of .*: -1 in sample 2",
        ),
        (lambda y: y + np.float32(0.5) * (np.arange(len(y)) == 7), r"\.5 in sample 7"),
    ],
)
def test_labels_that_name_no_class_are_refused(
    project: Path,
    compiled_project: Path,
    change: Callable[[np.ndarray], np.ndarray],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _labels(project, change)
    with pytest.raises(UserError, match=words):
        compile_model(project / "net.yaml")
    run = ["run", str(compiled_project / "out"), "--on", "integer", "--data", str(project / "data.npz")]
    assert main([*run, "--input", "image=x", "--labels", "y"]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("gap = 3", "gap is a int; name a function.*D111"),
        (
            "def gap(output): return 1",
            "calling it raises TypeError.*it takes the output and the labels.*D111",
        ),
        (
            "def gap(output, labels):\n    return labels.no",
            r"AttributeError: .*; see .*metrics\.py:2 \[D111\]",
        ),
        ("def gap(output, labels): return output", "calling it raises.*D111"),
        ("def gap(output, labels): return float('nan')", "its value is NaN.*D111"),
        ("def gasp(): pass", "no attribute 'gap'.*M102"),
    ],
)
def test_a_faulty_metric_of_the_users_own_is_refused(project: Path, code: str, words: str) -> None:
    (project / "metrics.py").write_text(code)
    _edit(project, "net.yaml", "metric: top1", OWN)
    with pytest.raises(UserError, match=words):
        compile_model(project / "net.yaml")


POSITIONS = {
    "images": ("{}", ""),
    "channels last": ("{}.permute(0, 2, 3, 1)", ""),
    "channels last, named": ("{}.permute(0, 2, 3, 1)", ", class_axis: -1"),
    "with dimensions of one": ("{}[:, None]", ", class_axis: 2"),
    "whole numbers": ("{}.argmax(1)", ""),
    "whole numbers of one channel": ("{}.argmax(1, keepdim=True)", ""),
}


def _per_position(project: Path, result: str) -> None:
    """A network that scores four classes at each of 8 x 8 positions, and labels for them."""
    _edit(project, "net.py", HEAD, f"return {result.format('self.stem(image)')}")
    classes = np.random.default_rng(1).integers(0, 4, (24, 8, 8))
    _labels(project, lambda y: classes)


@pytest.mark.parametrize("name", POSITIONS)
def test_classes_of_positions_are_counted_at_each_position(project: Path, name: str) -> None:
    result, options = POSITIONS[name]
    _per_position(project, result)
    _edit(project, "net.yaml", "metric: top1", f"metric: top1{options}")
    made = compile_model(project / "net.yaml", overrides=["passes=[]", "outputs={torch: {}}"])
    samples = made.session.evaluation
    assert samples is not None and samples.labels is not None
    (scores,) = run_samples(made.session.captured, samples)
    if not name.startswith("whole"):
        scores = scores.reshape(24, *made.session.captured.outputs[0].type.shape[1:])
        scores = scores.argmax({"images": 1, "with dimensions of one": 2}.get(name, 3))
    right = int((scores.flatten() == samples.labels.flatten()).sum())
    assert [(m.correct, m.compared, m.samples) for m in made.report.measurements] == [
        (right, 24 * 64, 24)
    ] * 2
    assert made.report.measurements[0].value == pytest.approx(100 * right / (24 * 64))
    _edit(project, "net.yaml", "labels: y, metric: top1", "metric: agreement")
    if "class_axis" not in options and not name.startswith("whole"):
        _edit(
            project,
            "net.yaml",
            "metric: agreement",
            f"metric: agreement, class_axis: {3 if 'last' in name else 1}",
        )
    found = compile_model(
        project / "net.yaml", overrides=["passes=[]", "outputs={torch: {}}"]
    ).report.measurements
    assert [(m.correct, m.compared) for m in found] == [(24 * 64, 24 * 64)]


@pytest.mark.parametrize(
    ("labels", "evaluation", "words"),
    [
        (
            (8, 8),
            "metric: agreement",
            "1x4x8x8, may have its classes along dimension 1 or 2 or 3; set `class_ax.*D110",
        ),
        (
            (8, 8),
            "labels: y, metric: top1, class_axis: 0",
            "has less than two classes along dimension 0; correct `class_axis`.*D110",
        ),
        (
            (8, 8),
            "labels: y, metric: top1, class_axis: 4",
            "has less than two classes along dimension 4.*D110",
        ),
        (
            (8, 8),
            "labels: y, metric: top1, class_axis: 3",
            "labels of shape 24x8x8 have no class for each.*D109",
        ),
        (
            (4, 8),
            "labels: y, metric: top1",
            "may have its classes along dimension 2 or 3; set `class_axis`.*file.py:function.*D110",
        ),
        (
            (),
            "labels: y, metric: top1",
            "labels of shape 24 have no class .* or each position of the output, 1x4x8x8.*D109",
        ),
        ((8, 7), "labels: y, metric: top1", "24x8x7 have no class .*file.py:function.*D109"),
        (
            (8, 8),
            "labels: y, metric: mse",
            "24x8x8 are not 256 numbers .* metric, such as `file.py:function`.*D109",
        ),
    ],
)
def test_positions_whose_classes_are_not_known_are_refused(
    project: Path, labels: tuple[int, ...], evaluation: str, words: str
) -> None:
    _per_position(project, "{}")
    _labels(project, lambda y: np.random.default_rng(2).integers(0, 4, (24, *labels)))
    _edit(project, "net.yaml", "labels: y, metric: top1", evaluation)
    with pytest.raises(UserError, match=words):
        compile_model(project / "net.yaml")


def test_run_measures_a_metric_of_the_users_own_as_compile_does(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "metrics.py").write_text(
        "def gap(output, labels):\n    return output.amax() if labels is None else output[labels == 1].mean()\n"
    )
    _edit(project, "net.yaml", "metric: top1", OWN)
    made = compile_model(project / "net.yaml")
    made.write(project / "out")
    run = ["run", "out", "--on", "integer", "--data", "data.npz", "--input", "image=x"]
    assert main([*run, "--labels", "y", "--metric", "metrics.py:gap"]) == 0
    text = made.report.measurements[1].text
    assert re.search(rf"gap of output +{re.escape(text)}$", capsys.readouterr().out, re.MULTILINE)
    assert main([*run, "--metric", "metrics.py:gap", "--output", "output"]) == 0
    assert "gap of output" in capsys.readouterr().out
    _labels(project, lambda y: np.eye(5, dtype=np.float32)[y])
    assert main([*run, "--labels", "y", "--metric", "mse"]) == 0
    assert re.search(r"mse of output +0\.\d+$", capsys.readouterr().out, re.MULTILINE)


def test_run_counts_the_positions_of_an_output(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    _per_position(project, "{}")
    made = compile_model(project / "net.yaml")
    made.write(project / "out")
    measured = made.report.measurements[1]
    run = ["run", "out", "--on", "integer", "--data", "data.npz", "--input", "image=x", "--labels", "y"]
    for words in (run, [*run, "--class-axis", "1"], [*run, "--class-axis", "-3", "--metric", "top1"]):
        assert main(words) == 0
        assert f"({measured.correct:,} of 1,536)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metric", "top1"), "--metric top1: needs labels; give --labels.*R415"),
        (("--metric", "mse"), "--metric mse: needs labels.*R415"),
        (
            ("--metric", "snr"),
            "--metric snr: compares with the captured model, which out does not contain.*R415",
        ),
        (("--metric", "agreement"), "compares with the captured model.*data.evaluation.*R415"),
        (("--metric", "top2", "--labels", "y"), "--metric top2: is not a metric.*`file.py:function`.*R415"),
        (("--metric", "no.py:gap"), "file not found: no.py.*M100"),
        (("--class-axis", "1"), "--class-axis 1: selects a measured output, but there is no metric.*R415"),
        (("--output", "output"), "--output output: selects a measured output, but there is no metric.*R415"),
        (("--labels", "y", "--output", "z"), "--output z: no output 'z'.*D112"),
    ],
)
def test_options_of_run_that_measure_nothing_are_refused(
    compiled_project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(compiled_project)
    run = ["run", "out", "--on", "integer", "--data", "data.npz", "--input", "image=x"]
    assert main([*run, *options]) == 2
    assert re.search(words, capsys.readouterr().err)
