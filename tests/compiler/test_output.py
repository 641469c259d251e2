"""Output directories appear whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxpress.compiler.errors import UserError
from fxpress.compiler.file_contents import Files
from fxpress.compiler.lock import make_lock
from fxpress.compiler.output import publish

FILES = {"spec.lock": b"{}", "c/net.c": b"int x;"}


def _content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_new_directory_holds_exactly_the_files(tmp_path: Path) -> None:
    publish(tmp_path / "deep" / "out", Files(FILES))
    assert _content(tmp_path / "deep" / "out") == FILES
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_earlier_output_is_replaced_as_a_whole(tmp_path: Path) -> None:
    publish(tmp_path / "out", Files({**FILES, "old.txt": b""}))
    publish(tmp_path / "out", Files(FILES))
    assert _content(tmp_path / "out") == FILES


def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty and has no spec\.lock"):
        publish(tmp_path / "out", Files(FILES))
    assert _content(tmp_path / "out") == {"thesis.tex": b"precious"}


def test_a_directory_with_a_file_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "out", Files({**FILES, "spec.lock": make_lock("", {}, Files(FILES)).to_bytes()}))
    (tmp_path / "out" / "data").mkdir()
    (tmp_path / "out" / "data" / "train.npz").write_bytes(b"precious")
    read = [tmp_path / "out" / "data" / "train.npz", tmp_path / "out" / "c" / "net.c", tmp_path / "absent"]
    with pytest.raises(UserError, match=r"contains data/train\.npz, an input that would be removed.*O312"):
        publish(tmp_path / "out", Files(FILES), inputs=read)
    assert (tmp_path / "out" / "data" / "train.npz").read_bytes() == b"precious"
    publish(tmp_path / "out", Files(FILES), inputs=read[1:])


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match="is a symbolic link"):
        publish(tmp_path / "out", Files(FILES))


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is not a directory"):
        publish(tmp_path / "out", Files(FILES))


def test_a_system_directory_is_refused() -> None:
    with pytest.raises(UserError, match=r"is not empty|read-only"):
        publish(Path("../../../../../../../../etc"), Files(FILES))


def test_a_read_only_place_is_refused_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() == 0:  # root may write anywhere: what access() answers to others stands in
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="read-only"):
        publish(tmp_path / "out", Files(FILES))
    assert list(tmp_path.iterdir()) == []


class FullDisk(Files):
    """Files of which the first parts find room on the disk."""

    def parts(self, name: str) -> Iterator[bytes]:
        yield b"x"
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_earlier_output(tmp_path: Path) -> None:
    publish(tmp_path / "out", Files(FILES))
    with pytest.raises(UserError, match="No space left on device; nothing was changed there"):
        publish(tmp_path / "out", FullDisk({**FILES, "more": b"x"}))
    assert _content(tmp_path / "out") == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-1").mkdir()
    (tmp_path / ".out.partial-1" / "half.c").write_text("")
    publish(tmp_path / "out", Files(FILES))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_output_set_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    publish(tmp_path / "out", Files({**FILES, "mark": b"old"}))
    (tmp_path / "out").rename(tmp_path / ".out.old-1")
    with pytest.raises(UserError):
        publish(tmp_path / "out", Files({**FILES, "mark": b"new", "mark/below": b""}))
    assert _content(tmp_path / "out")["mark"] == b"old"
