"""Who has a run's folder, and a folder that goes away meanwhile."""

from __future__ import annotations

import os

import pytest

from pipelines.stages import held


def test_a_second_run_is_kept_out_and_told_who_is_there(tmp_path):
    lock = tmp_path / "run" / ".lock"
    with held.held(lock):
        told = rf"another run is writing here \(process {os.getpid()} on "
        with pytest.raises(ValueError, match=told), held.held(lock):
            pass
        assert lock.exists()
    assert not lock.parent.exists()


def test_a_lock_is_had_at_once_where_the_folder_is_gone(tmp_path):
    lock = tmp_path / "run" / ".lock"
    file = held.locked(lock)
    assert file is not None
    with file:
        assert held.locked(lock) is None


def test_a_folder_that_goes_away_meanwhile_is_nobody_elses(tmp_path, monkeypatch):
    lock, locked = tmp_path / "run" / ".lock", held.locked
    lock.parent.mkdir()

    def late(lock):
        lock.parent.rmdir()
        return locked(lock)

    monkeypatch.setattr(held, "locked", late)
    with held.held(lock, patience=0):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not lock.exists()
