"""Schedules, budgets, and the choice of tokens."""

import math
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification, BertModel

from dynprobe.capture.architecture import Architecture, Stack
from dynprobe.capture.plan import make_plan, sample_tokens
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.schedule import Schedule
from dynprobe.capture.settings import CaptureSettings, parse_bytes, settings_from_words, show_bytes
from dynprobe.errors import UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.reader import FileReader


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


@pytest.mark.parametrize("value", ["float64", "bfloat16", "16", ""])
def test_attention_is_stored_in_one_of_two_types(value: str) -> None:
    with pytest.raises(UsageError, match=f"`attention_dtype` must be 'float16' or 'float32'; got '{value}'"):
        CaptureSettings(attention_dtype=value)
    assert settings_from_words(attention_dtype="float32") == CaptureSettings(attention_dtype="float32")


@pytest.mark.parametrize(
    "words", [{"hidden": "some"}, {"attention": "0"}, {"schedule": "x"}, {"budget": "x"}, {"attention_dtype": "half"}]
)
def test_settings_say_what_they_expect(words: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="must be"):
        settings_from_words(**words)
    assert settings_from_words(hidden="12", attention="all") == replace(CaptureSettings(), hidden=12, attention="all")


@pytest.mark.parametrize(
    ("budget", "asked", "words"),
    [
        (25_000_000, {}, "attention of 16 examples instead of 64"),
        (12_000_000, {"attention": "none"}, "snapshots instead of 9"),
        (3_000_000, {"attention": "none"}, "hidden states of 1024 tokens instead of 8192"),
        (2_200_000, {"attention": "none"}, "hidden states of one layer in 2 instead of all"),
        (3_000_000, {"hidden": "none"}, "attention of 4 examples instead of 64"),
    ],
)
def test_each_concession_is_said(budget: int, asked: dict[str, str], words: str) -> None:
    plan = make_plan(architecture(d_model=16), probe_set(), CaptureSettings(budget=budget, **asked), max_steps=1000)
    assert any(words in note for note in plan.notes), plan.notes


def test_only_what_was_left_to_the_budget_is_reduced() -> None:
    """Steps that were named and amounts that were given stay, whatever the budget."""
    asked = CaptureSettings(schedule="every:100", hidden=3000, attention="sample", budget=1_000_000)
    plan = make_plan(architecture(), probe_set(), asked, max_steps=1000)
    assert len(plan.steps) == 11
    assert len(plan.rows["model"]) == 3000
    assert plan.layers["model"] == (0, 1, 2, 3, 4)
    assert plan.n_attention_examples == 4


def test_attention_in_float32_is_counted() -> None:
    probe, whole = probe_set(), 10**12
    plans = {
        dtype: make_plan(architecture(), probe, CaptureSettings(attention_dtype=dtype, budget=whole), max_steps=1000)
        for dtype in ("float16", "float32")
    }
    # 64 examples of 40 tokens, 4 heads in each of 4 layers, two bytes more for each
    extra = 64 * 40 * 40 * 4 * 4 * 2
    assert plans["float32"].bytes_per_snapshot == plans["float16"].bytes_per_snapshot + extra
    assert plans["float32"].attention_dtype == "float32"
    budget = 9 * plans["float16"].bytes_per_snapshot
    small = make_plan(architecture(), probe, CaptureSettings(attention_dtype="float32", budget=budget), max_steps=1000)
    assert small.n_attention_examples == 32
    assert "attention of 32 examples instead of 64" in small.notes[0]


def test_cross_attention_in_float32_is_counted() -> None:
    stacks = tuple(Stack(name, 2, 16, 4, name == "decoder", ("first", "mean")) for name in ("encoder", "decoder"))
    both = Architecture(stacks, frozenset(), "bart", "BartModel", "bart", 1, 1)
    probe = ProbeSet.from_features([{"input_ids": np.arange(5, 15), "decoder_input_ids": np.arange(5, 12)}])
    sizes = [
        make_plan(both, probe, CaptureSettings(attention_dtype=dtype), max_steps=10).bytes_per_snapshot
        for dtype in ("float16", "float32")
    ]
    assert sizes[1] - sizes[0] == 4 * 2 * (10 * 10 + 7 * 7 + 10 * 7) * 2


def test_without_a_number_of_steps_ten_snapshots_are_assumed() -> None:
    asked = CaptureSettings(hidden="all", attention="none", budget=1)
    plan = make_plan(architecture(), probe_set(), asked)
    assert plan.steps == ()
    assert show_bytes(10 * plan.bytes_per_snapshot) in plan.notes[-1]


def test_a_large_budget_changes_nothing() -> None:
    asked = CaptureSettings(hidden=10**9, attention=10**9, budget=10**15)
    plan = make_plan(architecture(), probe_set(30, 8), asked, max_steps=5)
    assert len(plan.rows["model"]) == 240, "no more than there is"
    assert plan.n_attention_examples == 30
    assert plan.notes == ()


# Beyond the arrays a file holds its description, HDF5's own bookkeeping and small tables: some 600 bytes for each array.
BYTES_PER_ARRAY, BYTES_PER_FILE = 600, 8192


@given(
    n=st.integers(1, 40),
    d_model=st.sampled_from([8, 24]),
    n_layers=st.integers(1, 4),
    hidden=st.sampled_from(["sample", "all", "none", 7]),
    attention=st.sampled_from(["sample", "all", "none", 5]),
    budget=st.sampled_from([1, 10**6, 10**9]),
    head=st.sampled_from([BertModel, BertForMaskedLM, BertForTokenClassification, BertForQuestionAnswering]),
    dtype=st.sampled_from(["float16", "float32"]),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_a_plan_never_promises_less_than_a_snapshot_takes(
    n: int, d_model: int, n_layers: int, hidden: str | int, attention: str | int, budget: int, head: type, dtype: str
) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=d_model, num_hidden_layers=n_layers, num_attention_heads=2, intermediate_size=8,
        num_labels=9 if head is BertForTokenClassification else 2,
    )  # fmt: skip
    rng = np.random.default_rng(n)
    probe = ProbeSet.from_features([{"input_ids": rng.integers(5, 30, size=rng.integers(1, 30))} for _ in range(n)])
    asked = CaptureSettings(hidden=hidden, attention=attention, budget=budget, attention_dtype=dtype)
    with (
        tempfile.TemporaryDirectory() as folder,
        Recorder(head(config), probe, folder + "/r", settings=asked) as recorder,
    ):
        file = recorder.snapshot(0)
        size = file.stat().st_size
        with FileReader(file) as reader:
            n_arrays = len(reader.names)
            actual = sum(
                math.prod(reader.shape(name)) * np.dtype(reader.facts(name)["dtype"]).itemsize for name in reader.names
            )
    assert actual <= recorder.plan.bytes_per_snapshot + n_arrays * BYTES_PER_ARRAY
    assert size <= recorder.plan.bytes_per_snapshot + n_arrays * BYTES_PER_ARRAY + BYTES_PER_FILE


@pytest.mark.parametrize("asked", [{"value_norms": True}, {"attention_rows": "cls"}])
def test_what_needs_attention_is_refused_without(asked: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"`attention` must not be 'none' where (value norms|attention of .CLS.) is wanted"
    ):
        CaptureSettings(attention="none", **asked)
