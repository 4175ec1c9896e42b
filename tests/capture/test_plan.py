"""Schedules, budgets, and the choice of tokens."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprobe.capture.architecture import Architecture, Stack
from dynprobe.capture.plan import make_plan, sample_tokens
from dynprobe.capture.schedule import Schedule
from dynprobe.capture.settings import CaptureSettings, parse_bytes, settings_from_words, show_bytes
from dynprobe.errors import UsageError
from dynprobe.probe_set import ProbeSet


def architecture(*, d_model: int = 64, n_layers: int = 4, n_heads: int = 4) -> Architecture:
    stack = Stack("model", n_layers, d_model, n_heads, causal=False, pooled=("first", "mean"))
    return Architecture((stack,), frozenset({"input_ids"}), "bert", "BertModel", "bert", 1, 1)


def probe_set(n: int = 512, length: int = 40) -> ProbeSet:
    rng = np.random.default_rng(0)
    return ProbeSet.from_features([{"input_ids": rng.integers(5, 100, size=length)} for _ in range(n)])


@pytest.mark.parametrize(
    ("text", "max_steps", "steps"),
    [
        ("log:4", 1000, (0, 1, 10, 100, 1000)),
        ("log:8", 3, (0, 1, 2, 3)),
        ("every:40", 100, (0, 40, 80, 100)),
        ("at:7,3,500", 100, (0, 3, 7, 100)),
        ("ends", 100, (0, 100)),
        ("log:8", 0, (0,)),
    ],
)
def test_schedules(text: str, max_steps: int, steps: tuple[int, ...]) -> None:
    schedule = Schedule.parse(text)
    assert schedule.steps(max_steps) == steps
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("text", ["often", "log", "log:0", "every:x", "at:", "at:-1", "ends:3", "log:1,2", ""])
def test_a_schedule_says_what_it_expects(text: str) -> None:
    with pytest.raises(UsageError, match="`schedule` must be 'log:N'"):
        Schedule.parse(text)


def test_defaults() -> None:
    probe = probe_set()
    plan = make_plan(architecture(), probe, CaptureSettings(), max_steps=1000)
    assert len(plan.rows["model"]) == 8192
    assert plan.n_attention_examples == 64
    assert plan.layers["model"] == (0, 1, 2, 3, 4)
    assert plan.steps == (0, 1, 3, 7, 19, 52, 139, 373, 1000)
    assert plan.notes == ()
    wide = make_plan(architecture(d_model=1024), probe, CaptureSettings(budget=10**12), max_steps=1000)
    assert len(wide.rows["model"]) == 10 * 1024


def test_a_small_budget_is_met_and_said() -> None:
    probe = probe_set()
    for budget in (200_000_000, 40_000_000, 20_000_000):
        plan = make_plan(architecture(), probe, CaptureSettings(budget=budget), max_steps=1000)
        assert plan.bytes_per_snapshot * len(plan.steps) <= budget
    assert "made the capture smaller" in plan.notes[0]
    assert f"hidden states of {len(plan.rows['model'])} tokens instead of 8192" in plan.notes[0]


def test_what_was_asked_for_is_kept_beyond_the_budget() -> None:
    asked = CaptureSettings(hidden="all", attention="all", budget=1_000_000)
    plan = make_plan(architecture(), probe_set(), asked, max_steps=1000)
    assert len(plan.rows["model"]) == 512 * 40
    assert plan.n_attention_examples == 512
    assert "more than its budget of 1 MB" in plan.notes[-1]


@given(small=st.integers(1, 400), large=st.integers(1, 900))
@settings(max_examples=20, deadline=None)
def test_a_smaller_sample_is_part_of_a_larger_one(small: int, large: int) -> None:
    probe = probe_set(30, 25)
    small, large = sorted((small, large))
    few = {tuple(row) for row in sample_tokens(probe, "model", small)}
    many = {tuple(row) for row in sample_tokens(probe, "model", large)}
    assert few <= many
    assert len(few) == min(small, 750)


def test_the_sample_does_not_favour_examples_or_positions() -> None:
    rows = sample_tokens(probe_set(200, 50), "model", 2000)
    per_position = np.bincount(rows[:, 1], minlength=50)
    # 2000 of 10000 tokens: 40 expected at each position, with a standard deviation of about 5.6
    assert per_position.min() > 40 - 5 * 5.6
    assert per_position.max() < 40 + 5 * 5.6


@pytest.mark.parametrize(("text", "n_bytes"), [("2GB", 2 * 10**9), ("1.5 MiB", 1572864), ("700", 700), ("3kb", 3000)])
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0", "2 apples", "1e9"])
def test_a_size_says_what_it_expects(text: str) -> None:
    with pytest.raises(UsageError, match="a size must be a positive number with a unit"):
        parse_bytes(text)


def test_sizes_in_words() -> None:
    assert [show_bytes(n) for n in (3, 4_500, 2_000_000, 3.25e9)] == ["3 bytes", "4.5 kB", "2 MB", "3.25 GB"]


@pytest.mark.parametrize("words", [{"hidden": "some"}, {"attention": "0"}, {"schedule": "x"}, {"budget": "x"}])
def test_settings_say_what_they_expect(words: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="must be"):
        settings_from_words(**words)
    assert settings_from_words(hidden="12", attention="all") == replace(CaptureSettings(), hidden=12, attention="all")
