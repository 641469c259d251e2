"""Networks that packages ship: they take the published weights, give the golden outputs, and compile."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fxpress.compiler import compile_model
from fxpress.compiler.data import run_samples
from fxpress.compiler.execution import execute
from fxpress.compiler.loading import load_weights
from fxpress.ir import run_integer
from fxpress.specs import check_spec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "trained_networks"
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)

NETWORKS = {
    "LargeResNet8": "ic02_resnet8_large",
    "ProposalNet": "mtcnn_pnet",
    "RefinementNet": "mtcnn_rnet",
    "Crepe": "crepe_tiny",
    "VoiceActivity": "silero_vad_16k",
    "OkayNabu": "ww_okay_nabu",
    "ReactionAlbert": "rxn_albert",
}
SPECS = ("albert", "crepe", "ic_large", "okay_nabu", "pnet", "rnet", "vad")
SETS = (
    ("images_for_calibration", "test_images", "x"),
    ("candidate_windows", "other_candidate_windows", "x"),
    ("candidate_windows", "photograph_in_tiles", "x"),
    ("speech_frames", "tones", "x"),
    ("speech_steps", "other_speech_steps", "x"),
    ("sound_windows", "clip_windows", "x"),
    ("reaction_windows", "masked_reactions", "ids"),
    ("padded_reactions", "whole_masked_reactions", "ids"),
)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"trained_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


MODELS, SAMPLES, METRICS = (module(name) for name in ("networks", "datasets", "metrics"))


def network(name: str) -> torch.nn.Module:
    built: torch.nn.Module = getattr(MODELS, name)()
    load_weights(built, SHARED / "models" / f"{NETWORKS[name]}.safetensors")
    return built.eval()


def golden(name: str, *arrays: str) -> list[Tensor]:
    with np.load(SHARED / "models" / f"{NETWORKS[name]}_golden.npz") as archive:
        return [torch.from_numpy(archive[array]) for array in arrays]


def scaled(pixels: Tensor) -> Tensor:
    return (pixels.float() - 127.5) / 128


def steps_of_nabu(frames: Tensor, ends: list[int]) -> Tensor:
    """Windows [n, 40, 161] of features that end with these steps."""
    real = (frames.double() + 128) * 0.10196078568696976
    return torch.stack([real[3 * (end + 1) - 161 : 3 * (end + 1)].T.float() for end in ends])


@needs_shared
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_its_published_weights_and_no_others(name: str) -> None:
    stored = load_file(SHARED / "models" / f"{NETWORKS[name]}.safetensors")
    own = {key for key in network(name).state_dict() if not key.endswith("num_batches_tracked")}
    assert own == stored.keys()


@needs_shared
def test_image_classes_are_those_of_the_original() -> None:
    x, logits = golden("LargeResNet8", "x", "logits_float")
    found = network("LargeResNet8")(x.permute(0, 3, 1, 2).float())
    torch.testing.assert_close(found, logits, atol=2e-4, rtol=0)  # logits down to -34


@needs_shared
@pytest.mark.parametrize("size", ["img64", "rand24", "rand12"])
def test_proposals_are_those_of_the_original(size: str) -> None:
    x, box, face = golden("ProposalNet", f"{size}_x", f"{size}_reg", f"{size}_prob")
    found = network("ProposalNet")(scaled(x))
    torch.testing.assert_close(list(found), [box, face], atol=2e-5, rtol=0)


@needs_shared
def test_refinements_are_those_of_the_original() -> None:
    x, box, face = golden("RefinementNet", "x", "reg", "prob")
    found = network("RefinementNet")(scaled(x))
    torch.testing.assert_close(list(found), [box, face], atol=2e-5, rtol=0)


@needs_shared
def test_pitches_are_those_of_the_original() -> None:
    x, probability = (t[:8] for t in golden("Crepe", "x", "prob"))
    frames = torch.from_numpy(SAMPLES._normalized(x.numpy()))
    torch.testing.assert_close(torch.sigmoid(network("Crepe")(frames)), probability, atol=2e-5, rtol=0)


@needs_shared
def test_voice_activity_is_that_of_the_original_over_a_hundred_steps() -> None:
    arrays, vad = SAMPLES.other_speech_steps(), network("VoiceActivity")
    h, c = torch.zeros(1, 128), torch.zeros(1, 128)
    found = []
    for step in torch.from_numpy(arrays["x"][:100]):
        speech, h, c = vad(step[None], h, c)
        found.append(speech[0, 0])
    torch.testing.assert_close(
        torch.stack(found), torch.from_numpy(arrays["speech"][:100]), atol=2e-5, rtol=0
    )


@needs_shared
def test_a_window_decides_as_the_streaming_wake_word_does() -> None:
    x, logit = golden("OkayNabu", "x", "float_logit")
    ends = [53, 60, 100, 301, 653]
    found = network("OkayNabu")(steps_of_nabu(x, ends)).flatten()
    torch.testing.assert_close(found, logit[ends], atol=2e-4, rtol=0)


@needs_shared
def test_tokens_of_a_reaction_are_those_of_the_original() -> None:
    ids, logits = golden("ReactionAlbert", "ex0_ids", "ex0_logits")
    found = network("ReactionAlbert")(ids[None].long())[0]
    torch.testing.assert_close(found, logits, atol=2e-4, rtol=0)  # logits from -28 to 23


@needs_shared
@pytest.mark.parametrize(("calibration", "evaluation", "name"), SETS)
def test_no_evaluation_sample_is_one_of_calibration(calibration: str, evaluation: str, name: str) -> None:
    seen, measured = getattr(SAMPLES, calibration)()[name], getattr(SAMPLES, evaluation)()[name]
    assert seen.shape[1:] == measured.shape[1:] and seen.dtype == measured.dtype
    known = {sample.tobytes() for sample in seen if sample.any()}
    assert not known & {sample.tobytes() for sample in measured}


@needs_shared
def test_the_tiles_of_a_photograph_have_its_map() -> None:
    arrays = SAMPLES.photograph_in_tiles()
    found = network("ProposalNet")(scaled(torch.from_numpy(arrays["x"])))[1][:, 1]
    torch.testing.assert_close(found, torch.from_numpy(arrays["face"]), atol=2e-5, rtol=0)


@needs_shared
@pytest.mark.parametrize("name", SPECS)
def test_every_spec_is_sound(name: str) -> None:
    assert check_spec(FOLDER / f"{name}.yaml").target.name == "cortex-m4f"


def test_faces_count_only_where_one_of_both_networks_proposes_one() -> None:
    face = torch.tensor([[[0.9, 0.7], [0.1, 0.2]]])
    ours = torch.tensor([[[0.9, 0.5], [0.1, 0.7]]])
    assert METRICS.same_faces(torch.stack([1 - ours, ours], 1), face) == pytest.approx(100 / 3)


def test_decisions_are_taken_at_one_half() -> None:
    ours, theirs = torch.tensor([[0.6], [0.4], [0.9], [0.2]]), torch.tensor([0.9, 0.6, 0.8, 0.1])
    assert METRICS.same_decisions(ours, theirs) == 75
    assert METRICS.same_decisions(torch.cat([1 - ours, ours], 1), theirs) == 75


def test_a_pitch_is_the_weighted_mean_of_the_bins_around_the_largest() -> None:
    logits = torch.full((2, 360), -20.0)
    logits[0, [99, 100, 101]] = torch.tensor([0.0, 5.0, 0.0])
    logits[1, [0, 1]] = 3.0
    wanted = [10 * 2 ** ((20 * bin + 1997.3794084376191) / 1200) for bin in (100, 0.5)]
    torch.testing.assert_close(
        METRICS.pitch(logits), torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert (
        METRICS.within_50_cents(logits, torch.tensor([wanted[0] * 2 ** (49 / 1200), wanted[1] * 1.05])) == 50
    )


def test_a_clip_is_right_where_the_wake_word_is_detected_only_if_it_is_said() -> None:
    detected, silent, short = [9.0] * 5 + [-9.0] * 3, [-9.0] * 8, [9.0, 9.0] + [-9.0] * 6
    logits = torch.tensor([*detected, *silent, *short, *detected])[:, None]
    clip = torch.tensor([[index, said] for index, said in enumerate((1, 0, 1, 0)) for _ in range(8)])
    assert METRICS.clips_right(logits, clip) == 50


def test_only_masked_tokens_are_asked_for() -> None:
    logits = torch.eye(4)[None, [0, 1, 2, 3]]
    assert METRICS.masked_tokens(logits, torch.tensor([[0, -1, 1, -1]])) == 50


@needs_shared
@pytest.mark.parametrize(
    ("name", "least"), [("pnet", 70.0), pytest.param("rnet", 95.0, marks=pytest.mark.slow)]
)
def test_a_network_compiles_to_c_that_gives_what_its_integer_graph_gives(
    name: str, least: float, tmp_path: Path
) -> None:
    compiled = compile_model(FOLDER / f"{name}.yaml", overrides=["data.calibration.samples=32"])
    compiled.write(tmp_path / name)
    evaluation = compiled.session.evaluation
    assert evaluation is not None
    few = evaluation.first(4)
    found = execute(tmp_path / name, few, on="host").outputs
    wanted = run_samples(compiled.graph, few, interpreter=run_integer)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert compiled.report.measurements[-1].value >= least


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("okay_nabu", 2.0),
        ("vad", 3.0),
        ("crepe", 1.0),
        ("ic_large", 1.0),
        ("albert", 3.0),
        ("albert_int4", 1.0),
    ],
)
def test_a_large_network_keeps_its_metric(name: str, points: float) -> None:
    of_float, of_integer = compile_model(FOLDER / f"{name}.yaml").report.measurements
    assert of_integer.value >= of_float.value - points
