"""Networks in several regions of RAM: compiled, reported, and run on this machine and on a simulated core."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from fxpress.compiler import UserError, compile_model, execution, load_compiled
from fxpress.compiler.plan import plan_text

REGIONS = "target={name: cortex-m4f, regions: {dtcm: 260 B, psram: {bytes: 1 MiB, wait_states: 4}}}"
ARENA = "outputs.c.buffers=arena"


def test_the_report_lists_each_region(project: Path) -> None:
    compiled = compile_model(project / "net.yaml", overrides=[REGIONS])
    resources = {r.name: r for r in compiled.report.resources}
    dtcm, psram, waits = (resources[name] for name in ("region dtcm", "region psram", "wait cycles"))
    assert "arena" not in resources and 0 < dtcm.used <= dtcm.available == 260
    assert 0 < psram.used <= psram.available == 1 << 20 and "wait 4 cycles each" in psram.basis
    assert waits.used > 0 and f"{waits.used:,} in psram, the least of all assignments" in waits.basis
    assert "estimated with the wait cycles below" in resources["cycles"].basis
    assert {block.region for block in compiled.report.arena} == {"dtcm", "psram"}
    text, page = plan_text(compiled.report), compiled.files["report.html"].decode()
    assert all(name in text for name in ("region dtcm", "region psram", "wait cycles"))
    assert page.index("<h3>dtcm</h3>") < page.index("<h3>psram</h3>") and " of psram, steps " in page
    roomy = compile_model(project / "net.yaml", overrides=["target={name: cortex-m4f}"])
    cycles = {r.name: r.used for r in roomy.report.resources}["cycles"]
    assert resources["cycles"].used == cycles + waits.used


def test_a_network_that_does_not_fit_its_regions_is_refused(project: Path) -> None:
    small = REGIONS.replace("260 B", "40 B").replace("1 MiB", "60 B")
    with pytest.raises(UserError, match=r"dtcm needs [0-9]+ bytes of 40, psram needs [0-9]+ bytes of 60"):
        compile_model(project / "net.yaml", overrides=[small])


@pytest.mark.parametrize("overrides", [(REGIONS,), (REGIONS, ARENA)])
def test_regions_give_the_outputs_of_the_integer_graph(
    overrides: tuple[str, ...], project: Path, outputs_on, tmp_path: Path
) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    compiled = compile_model(project / "net.yaml", overrides=overrides)
    expected, *found = outputs_on(compiled, "integer", "host", "cortex-m4f")
    assert all(torch.equal(one, expected) for one in found)


def test_bytes_written_beside_a_region_are_found(project: Path, outputs_on, monkeypatch) -> None:
    compiled = compile_model(project / "net.yaml", overrides=[REGIONS])
    guarded = execution._Guarded.of

    def short(size: int) -> execution._Guarded:
        block = guarded(size)
        ctypes.memset(block.start + size, 0, 1)
        return block

    monkeypatch.setattr(execution._Guarded, "of", staticmethod(short))
    with pytest.raises(AssertionError, match="bytes outside a block of memory"):
        outputs_on(compiled, "host", count=1)


def test_the_interface_says_what_each_region_takes(project: Path, tmp_path: Path) -> None:
    compiled = compile_model(project / "net.yaml", overrides=[REGIONS, ARENA])
    assert compiled.c is not None
    compiled.write(tmp_path / "out")
    interface = load_compiled(tmp_path / "out").interface
    assert interface.regions == {used.name: used.bytes for used in compiled.c.plan.regions}
    assert interface.arena_bytes == compiled.c.plan.arena_bytes
    places = [port.place for port in (*interface.inputs, *interface.outputs)]
    assert places == [port.place for port in compiled.c.ports]
    assert interface.target.regions == compiled.session.target.regions
