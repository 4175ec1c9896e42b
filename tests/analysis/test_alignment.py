"""Which steps are paired, and what a reader is told about it."""

from pathlib import Path

import pytest

from dynprobe.analysis import align_steps, run_names


def test_same_steps_need_no_note():
    found = align_steps([0, 10, 50], [0, 10, 50])
    assert (found.pairs, found.by, found.notes) == (((0, 0), (10, 10), (50, 50)), "step", ())


def test_steps_that_only_one_run_has_are_left_out():
    assert align_steps([0, 5, 10, 50], [0, 10, 20, 50]).pairs == ((0, 0), (10, 10), (50, 50))


def test_last_is_paired_with_last():
    found = align_steps([0, 10, 100], [0, 10, 200])
    assert found.pairs == ((0, 0), (10, 10), (100, 200))
    assert "100 and 200" in found.notes[0]


def test_fraction_of_training_where_no_step_is_shared():
    found = align_steps([0, 50, 100], [0, 27, 41, 80])
    assert found.pairs == ((0, 0), (50, 41), (100, 80))
    assert found.by == "fraction"
    assert "aligned on the fraction of training" in found.notes[0]


def test_planned_length_decides_the_fraction():
    # The first training was stopped at half its length, so its step 25 is a quarter of it.
    assert (25, 30) in align_steps([0, 25, 50], [0, 30, 61, 120], max_steps=(100, 120)).pairs


def test_fractions_too_far_apart_leave_the_ends():
    found = align_steps([0, 10, 100], [0, 50, 99])
    assert (found.pairs, found.by) == (((0, 0), (100, 99)), "ends")
    assert "only the first and the last were compared" in found.notes[0]


def test_one_snapshot_each():
    found = align_steps([0], [0])
    assert found.pairs == ((0, 0),)
    assert [note.split(" run ")[0] for note in found.notes] == ["The first", "The second"]


def test_one_snapshot_against_many():
    assert align_steps([7], [0, 3, 9]).pairs == ((7, 0), (7, 9))


def test_different_starts_are_said():
    assert any("first snapshots were taken at different steps: 0 and 5" in n for n in align_steps([0, 9], [5, 9]).notes)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="at least one step of each run"):
        align_steps([], [0])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a", "/x/b"], ("a", "b")),
        (["/x/a/run", "/x/b/run"], ("a/run", "b/run")),
        (["/x/run", "/run"], ("x/run", "/run")),
        (["/x/run", "/x/run"], ("run", "run (2)")),
    ],
)
def test_names_tell_runs_apart(paths, names):
    assert run_names([Path(path) for path in paths]) == names
