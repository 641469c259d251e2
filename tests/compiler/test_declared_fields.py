"""Every key of a spec and of a target file is read by code: an unread key would have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxpress.compiler.cli import main
from fxpress.specs import Timing
from fxpress.specs.section import Section

# Keys that name a choice, and that the loader reads in the tree: pydantic finds the class by them, the file is merged.
NAMING = {"kind", "pass_"}
OF_THE_LOADER = {("Spec", "extends"), ("Spec", "fxpress"), ("Target", "core"), ("TargetChoice", "name")}
INSTRUCTIONS = {
    ("Timing", name) for name in Timing.model_fields
}  # read as the code has them; tests of simulate do
IN_OTHER_NETWORKS = {
    ("Adapter", "adapter"),
    ("GatedPrompts", "count"),
    ("GatedPrompts", "gate"),
    ("GatedPrompts", "layers"),
    ("PromptTuning", "count"),
    ("PromptTuning", "start"),
    ("Prompts", "prompts"),
    ("QuantizeOptions", "on_overflow"),
    ("RotateOptions", "seed"),
    ("Awq", "steps"),
    ("Cache", "bits"),
    ("Cache", "length"),
    ("FolderOutput", "format"),
    ("FolderOutput", "max_shard_bytes"),
    ("StreamOptions", "axis"),
    ("StreamOptions", "hop"),
}  # tests of the passes change them
LABELLED = "data: {calibration: {file: data.npz, inputs: {image: x}, labels: y, samples: 16}}"
CHAIN = "{commands: [arm-none-eabi-gcc], flags: [-O2, -mcpu=cortex-m4, -mthumb, -mfloat-abi=hard, -mfpu=fpv4-sp-d16]}"
TARGET = (
    "target: {name: cortex-m4f, ram: 200 KiB, flash: 900 KiB, stack: 3 KiB, clock: 80 MHz, features: [dsp, fpu], "
    f"toolchain: {CHAIN}}}"
)
SPECS = {
    "quantize": f"""
{TARGET}
passes:
  - {{pass: clean}}
  - {{pass: fuse}}
  - {{pass: equalize}}
  - {{pass: quantize, layers: {{stem.*: {{weights: int4}}}}, rounding: {{kind: adaround, iterations: 4}}}}
  - {{pass: remove_dead_channels}}
outputs:
  c: {{name: net}}
  torch: {{form: eager}}
""",
    "prune": f"""
{LABELLED}
passes:
  - {{pass: clean}}
  - {{pass: prune, budget: {{macs: 70 %}}, score: taylor, steps: 2, finetune: {{epochs: 1}}}}
  - {{pass: fuse}}
  - {{pass: finetune, epochs: 1, augment: {{flip: true, shift: 1}}, distill: {{layers: [stem]}}}}
  - {{pass: sparsify, sparsity: 50 %, finetune: {{epochs: 1}}}}
""",
    "prune_once": """
passes:
  - {pass: prune, budget: {macs: 70 %}, score: l2, granularity: channels}
""",
    "finetune": f"""
{LABELLED}
target: {{name: cortex-m4f, regions: {{dtcm: 64 KiB, psram: {{bytes: 1 MiB, wait_states: 4}}}}}}
passes:
  - {{pass: clean}}
  - {{pass: fuse}}
  - {{pass: quantize}}
  - {{pass: finetune, epochs: 1}}
""",
    "adapted": f"""
{LABELLED}
passes:
  - {{pass: clean}}
  - pass: finetune
    epochs: 1
    trains: {{lora: {{rank: 1}}}}
    distill: {{teacher: {{source: net.py:Net, weights: net.safetensors}}}}
  - {{pass: finetune, epochs: 1, distill: {{teacher: virtual}}}}
  - {{pass: finetune, epochs: 1, distill: {{teacher: peers, peers: 3, peer_weights: attention}}}}
  - {{pass: finetune, epochs: 1, distill: {{teacher: exits, exits: [stem]}}}}
outputs:
  torch: {{}}
""",
    "bits": """
passes:
  - {pass: clean}
  - {pass: fuse}
  - {pass: assign_bits, budget: {flash: 4800 B}}
  - {pass: quantize}
""",
    "weights": """
passes:
  - {pass: clean}
  - {pass: weight_only, group_size: 4, rounding: {kind: gptq, samples: 2}, budget: {weights: 60 %, loss: 9, samples: 2}}
outputs:
  torch: {}
""",
    "rounding": """
passes:
  - {pass: clean}
  - {pass: smooth, samples: 2}
  - pass: weight_only
    rounding:
      kind: learned
      steps: 1
      samples: 8
      start: {kind: awq, steps: 1, samples: 2, then: {kind: hqq, iterations: 1}}
outputs:
  torch: {}
""",
    "auto_round": """
passes:
  - {pass: clean}
  - pass: weight_only
    rounding: {kind: auto_round, steps: 1, samples: 2, batch: 2, learning_rate: 0.01, start: hqq}
outputs:
  torch: {max_shard_bytes: 1 kB}
""",
    "codebooks": """
passes:
  - {pass: clean}
  - {pass: product_quantize, block: 2, iterations: 2}
outputs:
  torch: {}
""",
    "dynamic": """
model:
  source: net.py:Net
  weights: net.safetensors
  inputs: {image: {shape: [1, 3, 8, 8], dynamic: {0: batch}}}
  dimensions: {batch: {min: 1, max: 8}}
passes: [{pass: clean}]
outputs:
  torch: {}
""",
} | {
    kind: f"""
passes:
  - {{pass: clean}}
  - {{pass: fuse}}
  - {{pass: quantize, observer: {{kind: {kind}}}}}
"""
    for kind in ("moving_average", "percentile", "mse", "kl", "aciq")
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Class and name of each field that is read while the test runs."""
    found: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def noting(self: Section, name: str) -> Any:  # any: a field of whatever type
        if not name.startswith("_"):
            for owner in type(self).__mro__:
                if name in getattr(owner, "__annotations__", {}):
                    found.add((owner.__name__, name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", noting)
    return found


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    for section in base.__subclasses__():
        if section.__module__.startswith("fxpress.") and "compiler.methods" not in section.__module__:
            yield section
        yield from sections(section)


def declared() -> set[tuple[str, str]]:
    return {
        (section.__name__, name)
        for section in sections()
        for name in section.__annotations__
        if name in section.model_fields
    }


def test_every_declared_field_is_read(
    project: Path, read: set[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    plain = yaml.safe_load((project / "net.yaml").read_text())
    for name, parts in SPECS.items():
        (project / f"{name}.yaml").write_text(yaml.safe_dump(plain | yaml.safe_load(parts)))
        assert main(["compile", f"{name}.yaml", "-o", f"out_{name}"]) == 0
    arguments = ["--data", "data.npz", "--input", "image=x", "--samples", "1"]
    assert main(["run", "out_quantize", "--on", "cortex-m4f", *arguments]) == 0
    assert main(["targets"]) == 0
    monkeypatch.setenv("PATH", "")
    assert main(["run", "out_quantize", "--on", "cortex-m3", *arguments]) == 2
    known = OF_THE_LOADER | INSTRUCTIONS | IN_OTHER_NETWORKS
    unread = {(section, name) for section, name in declared() - read - known if name not in NAMING}
    assert unread == set()
