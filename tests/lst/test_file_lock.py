"""Locks on files that their holders remove: what happens between opening a file and locking it is put there by hand."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lst import file_lock
from lst.file_lock import locked


def refused(path: Path) -> bool:
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True


def test_a_lock_keeps_others_out_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lock"
    with locked(path):
        assert refused(path)
    assert not refused(path)


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.unlink()
    path.touch()


def rename_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("meanwhile", [remove, replace, rename_the_folder])
def test_a_file_that_was_removed_before_it_was_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Path], None], wait: bool
) -> None:
    """The holder before ends, and removes the file, just when it was opened: a third process may lock a new one of that name."""
    path, calls = tmp_path / "work" / "lock", []

    def late(file: int, kind: int) -> None:
        calls.append(kind)
        if len(calls) == 1:
            meanwhile(path)
        fcntl.flock(file, kind)

    with monkeypatch.context() as patch:
        patch.setattr(file_lock.fcntl, "flock", _only_here(late))
        with locked(path, wait=wait):
            assert len(calls) == 2
            patch.undo()
            assert refused(path)
    assert not refused(path)


def _only_here(late: Callable[[int, int], None]) -> Any:
    """`late` in place of flock, which itself calls the real one."""
    real, inside = fcntl.flock, []

    def flock(file: int, kind: int) -> None:
        if inside:
            return real(file, kind)
        inside.append(True)
        try:
            return late(file, kind)
        finally:
            inside.clear()

    return flock


def test_a_link_that_leads_nowhere_is_no_file_to_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "lock"):
        raise AssertionError


def test_without_locks_work_goes_on_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(file: int, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(file_lock.fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "lock"):
        pass
    assert "cannot lock" in caplog.text
    assert "No locks available" in caplog.text
