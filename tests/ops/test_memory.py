"""What glibc is told of freed memory, unless the user has told it something."""

from __future__ import annotations

import os

import pytest

from ops.memory import KEEP_MEMORY, keep_memory


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)


def test_a_process_gets_all_where_the_user_says_nothing():
    assert keep_memory() == KEEP_MEMORY


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_a_process_gets_nothing_where_the_user_decides(monkeypatch, name):
    monkeypatch.setenv(name, "100000")
    assert keep_memory() == {}


def test_a_process_keeps_the_users_number_of_arenas(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert keep_memory() == {name: value for name, value in KEEP_MEMORY.items() if name != "MALLOC_ARENA_MAX"}
