"""Regions of RAM in a spec and in a target file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import RamRegion, SpecError, Target, TargetChoice, load_spec, load_target
from fxpress.specs.target import region_bytes, region_waits

Write = Callable[..., Path]
BOARD = """\
name: board
description: a board of ours
core: cortex-m7
regions:
  dtcm: 64 KiB
  psram: {bytes: 8 MiB, wait_states: 4}
flash: 1 MiB
"""


def board(write: Write, text: str = BOARD) -> Target:
    return load_target(write(text, "board.yaml"))


def test_ram_is_the_sum_of_the_regions(write: Write) -> None:
    target = board(write)
    assert target.ram == (64 << 10) + (8 << 20)
    assert target.regions is not None and list(target.regions) == ["dtcm", "psram"]
    assert target.regions["psram"] == RamRegion(bytes="8 MiB", wait_states=4)  # type: ignore[arg-type]  # as written
    assert Target.model_validate_json(target.model_dump_json()) == target


def test_a_spec_overrides_ram_and_regions_together() -> None:
    plain = load_target("cortex-m7")
    several = TargetChoice(regions={"dtcm": "64 KiB", "sram": "64 KiB"}).applied_to(plain)  # type: ignore[dict-item]
    assert several.ram == 128 << 10 and list(several.regions or ()) == ["dtcm", "sram"]
    one = TargetChoice(ram="32 KiB").applied_to(several)  # type: ignore[arg-type]
    assert (one.ram, one.regions) == (32 << 10, None)
    assert TargetChoice(flash="1 MiB").applied_to(several).regions == several.regions  # type: ignore[arg-type]
    assert several.with_ram(None) == plain.model_copy(update={"ram": None})


def test_less_ram_is_taken_from_the_slowest_region() -> None:
    slow = RamRegion(bytes="1 MiB", wait_states=4)  # type: ignore[arg-type]
    target = load_target("cortex-m7").model_copy(
        update={"regions": {"psram": slow, "dtcm": 1000, "sram": 2000}, "ram": 1003000}
    )

    def sizes(ram: int | None) -> dict[str, int]:
        given = target.with_total_ram(ram).regions or {}
        assert [region_waits(region) for region in given.values()] == [4, 0, 0]
        return {name: region_bytes(region) for name, region in given.items()}

    assert sizes(3500) == {"psram": 500, "dtcm": 1000, "sram": 2000}
    assert sizes(1500) == {"psram": 0, "dtcm": 1000, "sram": 500}
    assert sizes(400) == {"psram": 0, "dtcm": 400, "sram": 0}
    roomy = sizes(None)
    assert roomy.pop("psram") > 1 << 32 and roomy == {"dtcm": 1000, "sram": 2000}
    assert target.with_ram(64).with_total_ram(32).ram == 32


def test_ram_that_is_the_sum_may_be_written(write: Write) -> None:
    text = BOARD.replace("8 MiB", "64 KiB").replace("flash:", "ram: 128 KiB\nflash:")
    assert board(write, text).ram == 128 << 10


BAD = {
    "ram: 128 KiB": ("S307", "ram: contradicts `regions`, whose sum is 8454144 B; remove `ram`"),
    "  9tcm: 1 KiB": ("S207", '"9tcm" cannot be the name of a region, which is a parameter in C'),
    "  DTCM: 1 KiB": ("S207", "use at most 24 lower-case letters"),
    "  while: 1 KiB": ("S207", '"while" cannot be the name of a region'),
    "  typeof: 1 KiB": ("S207", '"typeof" cannot be the name of a region'),
    "  weights: 1 KiB": ("S207", '"weights" cannot be the name of a region: the emitted C uses it'),
    "  input_0: 1 KiB": ("S207", "the emitted C uses it; choose a name such as `dtcm` or `sram_2`"),
    "  near: 1 KiB": ("S207", "the emitted C uses it"),
    "  sram: 64": ("S206", "regions.sram: 64 has no unit"),
    "  sram: 0 B": ("S205", 'regions.sram: "0 B" must be more than zero'),
    "  sram: {bytes: 1 KiB, wait_states: -1}": ("S205", "regions.sram.wait_states: must be at least 0"),
    "  sram: {wait_states: 1}": ("S202", 'regions.sram: the key "bytes" is missing'),
    "  sram: {bytes: 1 KiB, speed: 1}": ("S201", 'regions.sram: unknown key "speed"'),
}


@pytest.mark.parametrize("line", BAD)
def test_what_is_wrong_with_regions_has_a_place(line: str, write: Write) -> None:
    code, message = BAD[line]
    with pytest.raises(SpecError) as caught:
        board(write, BOARD.replace("flash: 1 MiB\n", f"{line}\n"))
    (problem,) = caught.value.problems
    assert problem.code == code and message in str(problem)
    assert problem.place is not None and problem.place.line == 7


def test_a_region_without_a_name_is_refused() -> None:
    with pytest.raises(SpecError, match='"" cannot be the name of a region'):
        TargetChoice(regions={"": "1 KiB"})  # type: ignore[dict-item]


def test_a_target_without_any_region_is_refused(write: Write) -> None:
    with pytest.raises(SpecError, match=r"regions: must have at least one region; name at least one.*S205"):
        board(write, "name: b\ndescription: a board\ncore: cortex-m7\nregions: {}\n")


def test_regions_are_set_on_the_command_line(write: Write) -> None:
    regions = "{dtcm: 64 KiB, sram: {bytes: 1 MiB, wait_states: 2}}"
    loaded = load_spec(write(), [f"target={{name: cortex-m7, regions: {regions}}}"])
    assert loaded.target.ram == (64 << 10) + (1 << 20)
    shown = {setting.path: setting.text for setting in loaded.settings()}
    assert shown["target.regions.sram.wait_states"] == "2" and shown["target.regions.dtcm"] == "65536 B"
