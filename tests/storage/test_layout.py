"""Names of files: one for each step, and nothing that leads out of a folder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynprobe.storage.layout import (
    is_probe_name,
    is_safe_name,
    is_task_name,
    is_temporary,
    probe_path,
    snapshot_path,
    step_of,
    task_name_of,
    task_part,
    task_part_of,
    temporary_path,
)


@given(st.integers(0, 10**12 - 1))
def test_name_of_a_step_comes_back(step):
    assert step_of(snapshot_path(Path("run"), step)) == step


@pytest.mark.parametrize(
    "name",
    [
        "step-1.h5",
        "step-000000120.h5",
        "step-00000120.h5.tmp",
        "step-٠٠٠٠٠١٢٠.h5",
        "step-00000001.h5\n",
        "xstep-00000001.h5",
    ],
)
def test_other_names_are_no_snapshot(name):
    assert step_of(Path(name)) is None


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\n", "é", "a" * 65, "-x", "a b"])
def test_unsafe_names(name):
    assert not is_safe_name(name)
    assert not is_probe_name(Path(f"folder/{name}h5"))


def test_only_own_temporary_names_are_temporary():
    assert is_temporary(temporary_path(Path("manifest.json")))
    assert is_temporary(temporary_path(Path("step-00000001.h5")))
    assert not any(
        is_temporary(Path(name)) for name in ("notes.tmp", "thesis.tex.12.tmp", "main.h5.tmp", "main.h5.x.tmp")
    )


def test_names_of_probe_tasks():
    for name in ("wic", "_", "0", "a-b_C", "x" * 58):
        assert is_task_name(name)
        assert task_name_of(name) == name
        for split in ("train", "test"):
            part = task_part(name, split)
            assert is_safe_name(part)
            assert task_part_of(part) == (name, split)
            assert is_probe_name(probe_path(Path("run"), part))
    for name in ("", "-a", "a.b", "a/b", "..", "a b", "é", "x" * 59, "a\n", "main.train"):
        assert not is_task_name(name)
        assert is_task_name(task_name_of(name))
    assert [task_part_of(name) for name in ("main", "wic", "wic.dev", "a.b.train", ".train", "wic.train\n")] == [
        None
    ] * 6
