"""Probes of other tasks: against scikit-learn, verdicts on made-up changes, what is chosen where, what cannot be probed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dynprobe.analysis import moments
from dynprobe.analysis.findings import findings
from dynprobe.analysis.knowledge import accuracy_interval, change_interval, detectable_change, verdict
from dynprobe.analysis.probe_labels import TaskLabels
from dynprobe.analysis.probe_suite import probe_suite
from dynprobe.errors import UsageError
from dynprobe.metrics import wilson_interval
from dynprobe.metrics.tuned_probes import PENALTIES
from tests.analysis.probe_task_runs import FakeRun, FakeSnapshot, examples, fake_run


def rows(result, metric, **equal):
    return result.select(metric=f"knowledge_{metric}", **equal)


def test_equals_scikit_learn_with_the_penalty_chosen_on_the_same_folds():
    run = fake_run(strengths=((0.5, 1.0), (0.2, 0.8)), n_classes=3, d=10)
    result = probe_suite(moments(run), control=False)
    train, test = run.tasks["subj"]
    labels = TaskLabels.of(train, test)
    folds = labels.folds(np.arange(120))
    for layer in (0, 1):
        x, other = (run[50].pooled("first", layer, probe=f"subj.{split}") for split in ("train", "test"))
        scaler = StandardScaler().fit(x)
        z, losses = scaler.transform(x), {}
        for penalty in PENALTIES:
            options = {"C": 1 / (penalty * 120), "tol": 1e-8, "max_iter": 5000}
            losses[penalty] = 0.0
            for fold in range(5):
                seen = folds != fold
                model = LogisticRegression(**options).fit(z[seen], train.labels[seen])
                log_p = model.predict_log_proba(z[~seen])
                losses[penalty] -= log_p[np.arange(len(log_p)), train.labels[~seen]].sum()
        best = min(losses, key=losses.get)
        model = LogisticRegression(C=1 / (best * 120), tol=1e-8, max_iter=5000).fit(z, train.labels)
        right = (model.predict(scaler.transform(other)) == test.labels).sum()
        row = rows(result, "by_layer", layer=layer, step_a=50).iloc[0]
        assert abs(row["value"] * 200 - right) <= 1  # one answer may hang on the last digits of a fit
        assert row["chance"] == pytest.approx(67 / 200)
        assert (row["low"], row["high"]) == pytest.approx(wilson_interval(round(row["value"] * 200), 200))
        assert row["n"] == 200


def test_knowledge_that_is_lost_is_called_so():
    result = probe_suite(moments(fake_run(strengths=((0.0, 3.0), (0.0, 0.0)))))
    last = rows(result, "change", position="last layer").iloc[0]
    assert last["value"] < -0.3
    assert last["high"] < 0
    assert last["reason"].startswith("degraded (layer 1, first token)")
    assert (last["step_a"], last["step_b"], last["comparison"]) == (50, 0, "from_start")
    accuracy = rows(result, "accuracy", position="last layer").set_index("step_a")["value"]
    assert accuracy[50] - accuracy[0] == pytest.approx(last["value"])
    assert "run, step 50, task subj: at the last layer" in result.findings[0]
    assert "what pretraining knew is degraded" in result.findings[0]


def test_what_moved_to_another_layer_is_found_at_the_best_one():
    result = probe_suite(moments(fake_run(strengths=((0.0, 3.0), (3.0, 0.0)))))
    reasons = rows(result, "change").set_index("position")["reason"]
    assert reasons["last layer"].startswith("degraded")
    assert reasons["best layer"].endswith("(layer 1, first token → layer 0, first token)")
    assert rows(result, "change", position="best layer").iloc[0]["value"] == pytest.approx(0.0, abs=0.03)


def test_nothing_happened():
    result = probe_suite(moments(fake_run(strengths=((0.0, 3.0), (0.0, 3.0)))))
    for row in rows(result, "change").itertuples():
        assert row.value == 0.0
        assert row.low == -row.high == pytest.approx(-(1.959964**2) / (200 + 1.959964**2))
        assert row.reason == "retained within 2 points (layer 1, first token)"
    narrow = probe_suite(moments(fake_run(strengths=((0.0, 3.0), (0.0, 3.0)))), margin=0.01)
    assert rows(narrow, "change").iloc[0]["reason"].startswith("cannot tell; smallest detectable change 0.0269")
    assert "it cannot be told whether what pretraining knew was kept" in narrow.findings[0]


def test_what_was_never_known_is_not_called_kept_or_lost():
    for end, words in (
        (0.0, "knew nothing clearly above chance:"),
        (3.0, "clearly above chance, and now it is read better:"),
    ):
        result = probe_suite(moments(fake_run(strengths=((0.0, 0.0), (0.0, end)))))
        assert words in result.findings[0]
        assert "not clearly above chance at step 0 (" in rows(result, "change").iloc[0]["reason"]


def with_random(run: FakeRun, strength: float) -> FakeRun:
    """The same run with a random encoder whose classes lie so many times as far apart as those at step 0."""
    start = run.snapshots[0].vectors
    random = {key: strength * start[key] + (1 - strength) * noise for key, noise in run.random.items()}
    return replace(run, random=random)


@pytest.mark.parametrize("end", [0.0, 3.0, 9.0])
def test_what_a_random_encoder_reads_as_well_was_not_learned(end):
    run = with_random(fake_run(strengths=((0.0, 3.0), (0.0, end))), 1.0)
    result = probe_suite(moments(run))
    change = rows(result, "change", position="last layer").iloc[0]
    start = rows(result, "accuracy", position="last layer", step_a=0).iloc[0]
    assert start["low"] > start["chance"]
    assert start["reference"] == start["value"]
    assert "; not clearly above a random encoder at step 0 (" in change["reason"]
    words = "pretraining knew nothing clearly above a random encoder" + (
        "" if end < 9 else ", and now it is read better"
    )
    assert f"{words}: " in result.findings[0]


def test_what_beats_the_random_encoder_on_the_same_examples_was_known():
    run = with_random(fake_run(strengths=((0.0, 3.0), (0.0, 3.0)), n_test=400), 0.4)
    result = probe_suite(moments(run))
    start = rows(result, "accuracy", position="last layer", step_a=0).iloc[0]
    assert start["chance"] < start["reference"] < start["value"]
    assert "random encoder" not in " ".join([*rows(result, "change")["reason"], *result.findings])
    alone = probe_suite(moments(fake_run(strengths=((0.0, 3.0), (0.0, 3.0)), random=False)))
    assert "random encoder" not in " ".join([*rows(alone, "change")["reason"], *alone.findings])


def test_two_runs_at_chance_are_said_to_be():
    flat = ((0.0, 0.0), (0.0, 0.0))
    for strengths, said in ((flat, True), (((0.0, 3.0), (0.0, 3.0)), False)):
        a, b = fake_run("a", strengths=strengths), fake_run("b", strengths=flat, seed=0)
        result = probe_suite((*moments(a), *moments(b)))
        assert ("(neither is clearly above the commonest class)" in result.findings[-1]) is said


def test_a_task_that_one_run_lacks():
    a, b = fake_run("a"), fake_run("b")
    b.tasks["other"] = b.tasks.pop("subj")
    b = replace(
        b,
        snapshots={
            step: FakeSnapshot({(key[0].replace("subj", "other"), *key[1:]): v for key, v in own.vectors.items()})
            for step, own in b.snapshots.items()
        },
    )
    table = probe_suite((*moments(a), *moments(b))).table
    said = findings(table, ("a", "b"))
    assert [line for line in said if line.startswith("Not compared")] == [
        "Not compared: accuracy on other tasks (other), because a was not captured with the probe task other, but with subj.",
        "Not compared: accuracy on other tasks (subj), because b was not captured with the probe task subj, but with other.",
    ]


def test_the_best_layer_is_chosen_without_the_test_examples():
    run = fake_run(strengths=((0.0, 3.0), (0.0, 3.0)))
    # where training examples know nothing, test examples that give everything away must not count
    run.snapshots[0].vectors["subj.test", "first", 0][:] = run.snapshots[0].vectors["subj.test", "first", 1] * 10
    best = rows(probe_suite(moments(run)), "accuracy", position="best layer", step_a=0).iloc[0]
    assert best["reason"] == "layer 1, first token"


def test_all_kinds_of_pooled_vectors_may_be_the_best_but_the_first_is_the_last_layer():
    run = fake_run(strengths=((0.0, 0.0), (0.0, 0.0)), kinds=("first", "mean"))
    for split in ("train", "test"):
        labels = run.tasks["subj"][split == "test"].labels
        run.snapshots[50].vectors[f"subj.{split}", "mean", 1][:, 0] += 4 * labels
    result = probe_suite(moments(run))
    assert set(rows(result, "by_layer")["position"]) == {"first", "mean"}
    now = rows(result, "accuracy", step_a=50).set_index("position")["reason"]
    assert now["last layer"] == "layer 1, first token"
    assert now["best layer"] == "layer 1, mean over tokens"


def test_baselines():
    run = fake_run(strengths=((0.0, 3.0), (0.0, 2.0), (0.0, 1.0)), steps=(0, 10, 50))
    result = probe_suite(moments(run))
    random = rows(result, "by_layer")["reference"]
    assert random.notna().all()
    assert random.between(0.35, 0.65).all()  # no class in it
    lot = rows(result, "selectivity", position="last layer").set_index("step_a")
    assert list(lot.index) == [0, 50]  # at the ends only
    accuracy = rows(result, "accuracy", position="last layer").set_index("step_a")["value"]
    assert (accuracy[0] - lot["value"][0]) == pytest.approx(0.5, abs=0.15)
    without = probe_suite(moments(fake_run(random=False)), control=False)
    assert rows(without, "by_layer")["reference"].isna().all()
    assert rows(without, "selectivity").empty


def test_runs_are_compared_on_the_same_test_examples():
    a, b = fake_run("a", strengths=((0.0, 3.0), (0.0, 3.0))), fake_run("b", strengths=((0.0, 3.0), (0.0, 0.0)))
    result = probe_suite((*moments(a), *moments(b)))
    row = rows(result, "difference", position="last layer").iloc[0]
    ends = rows(result, "accuracy", position="last layer", step_a=50).set_index("run_a")["value"]
    assert row["value"] == pytest.approx(ends["a"] - ends["b"])
    assert row["low"] > 0
    assert (row["run_a"], row["run_b"], row["comparison"]) == ("a", "b", "between")
    assert "a against b, at the last layer, also the best, better from a" in result.findings[-1]
    for other in (fake_run("b", n_test=150), fake_run("b", n_train=90)):
        clash = rows(probe_suite((*moments(a), *moments(other))), "difference").iloc[0]
        assert (clash["status"], clash["reason"]) == (
            "incompatible",
            "the runs have different examples of the same probe task",
        )


def test_fewer_training_examples():
    run = fake_run(strengths=((0.0, 2.0), (0.0, 1.0)))
    result = probe_suite(moments(run), fractions=(0.25, 1.0), n_seeds=3)
    assert list(dict.fromkeys(rows(result, "accuracy")["group"])) == ["subj", "subj, 25 % of the training examples"]
    assert "25 %" not in " ".join(result.findings)
    few = rows(result, "accuracy", group="subj, 25 % of the training examples", position="last layer", step_a=0)
    full = rows(result, "accuracy", group="subj", position="last layer", step_a=0)
    assert few["value"].iloc[0] < full["value"].iloc[0] + 0.02
    labels = TaskLabels.of(*run.tasks["subj"])
    subsets = [labels.subset(0.25, seed) for seed in range(3)]
    assert [len(part) for part in subsets] == [30, 30, 30]
    assert [np.bincount(labels.train[part]).tolist() for part in subsets] == [[15, 15]] * 3
    assert len({tuple(part) for part in subsets}) == 3
    assert set(labels.subset(0.1, 0)) <= set(subsets[0])
    tiny = probe_suite(moments(run), fractions=(0.05, 1.0)).select(status="insufficient-sample")
    assert tiny["group"].tolist() == ["subj, 5 % of the training examples"]
    assert tiny["reason"].iloc[0] == "a class has 3 training examples; at least 5 are needed, one for each fold"


def test_examples_that_share_a_text_stay_together():
    texts = {
        "train": tuple((f"a{i // 4}", f"b{i}") for i in range(120)),
        "test": tuple((f"c{i // 4}", f"d{i}") for i in range(200)),
    }
    run = fake_run(texts=texts, n_classes=3)
    labels = TaskLabels.of(*run.tasks["subj"])
    folds = labels.folds(np.arange(120))
    assert all(len(set(folds[4 * i : 4 * i + 4])) == 1 for i in range(30))
    assert np.bincount(folds).tolist() == [24] * 5
    part = labels.subset(0.2, 1)
    assert len(part) == 24
    assert len(set(part // 4)) == 6
    wide = probe_suite(moments(run)).select(metric="knowledge_accuracy", position="last layer", step_a=0).iloc[0]
    alone = wilson_interval(round(wide["value"] * 200), 200)
    assert wide["high"] - wide["low"] >= alone[1] - alone[0] - 1e-12


def with_words(run: FakeRun, words: dict[str, np.ndarray]) -> FakeRun:
    """The same run, each example with the token that it is given, and one that all share."""
    changed = []
    for part, probe in zip(("train", "test"), run.tasks["subj"], strict=True):
        ids = np.stack([100 + words[part], np.full(probe.n_examples, 7)], axis=1)
        mask = np.ones_like(ids, dtype=bool)
        changed.append(replace(probe, inputs={"input_ids": ids}, real={"model": mask}, special={"model": ~mask}))
    return replace(run, tasks={"subj": tuple(changed)})


def test_control_labels_are_those_of_words() -> None:
    rng = np.random.default_rng(0)
    words = {"train": np.arange(600) % 30, "test": rng.integers(35, size=400)}
    run = with_words(fake_run(n_train=600, n_test=400, n_classes=3, strengths=((0.0, 2.0), (0.0, 2.0))), words)
    train, test = TaskLabels.of(*run.tasks["subj"]).control()
    of_word = {word: {int(label) for label in train[words["train"] == word]} for word in range(30)}
    assert all(len(labels) == 1 for labels in of_word.values())
    assert all({int(label)} == of_word[word] for word, label in zip(words["test"], test, strict=True) if word < 30)
    assert (np.bincount(train) / 600).tolist() == pytest.approx([1 / 3] * 3, abs=1 / 30)


@pytest.mark.parametrize("knows_words", [False, True])
def test_selectivity_is_low_where_words_would_explain_the_accuracy(knows_words: bool) -> None:
    rng = np.random.default_rng(0)
    words = {"train": rng.permutation(600) % 20, "test": rng.integers(20, size=400)}
    run = with_words(fake_run(n_train=600, n_test=400, d=24, strengths=((0.0, 6.0), (0.0, 6.0))), words)
    if knows_words:
        for snapshot in run.snapshots.values():
            for (part, _, _), array in snapshot.vectors.items():
                array[:, :20] += 20 * np.eye(20)[words[part.removeprefix("subj.")]]
    result = probe_suite(moments(run))
    accuracy, lot = (
        rows(result, name, position="last layer", step_a=50)["value"].iloc[0] for name in ("accuracy", "selectivity")
    )
    assert accuracy > 0.95
    control = accuracy - lot
    assert control > 0.95 if knows_words else 0.35 < control < 0.65


def test_a_class_without_training_examples_is_said() -> None:
    run = fake_run(n_train=120, n_test=200, n_classes=3)
    train, test = run.tasks["subj"]
    run = replace(run, tasks={"subj": (replace(train, labels=np.asarray(train.labels) % 2), test)})
    row = rows(probe_suite(moments(run)), "accuracy").iloc[0]
    assert (row["status"], row["reason"]) == (
        "insufficient-sample",
        "a class has 0 training examples; at least 5 are needed, one for each fold",
    )


def test_an_interval_of_several_fits_is_never_narrower_than_that_of_one() -> None:
    groups = tuple(str(i) for i in range(40))
    right = np.ones((3, 40), dtype=bool)
    assert accuracy_interval(right, groups, level=0.95) == accuracy_interval(right[:1], groups, level=0.95)
    assert accuracy_interval(right, groups, level=0.95)[0] < 0.92
    assert change_interval(right, right, groups, level=0.95) == change_interval(
        right[:1], right[:1], groups, level=0.95
    )
    rng = np.random.default_rng(0)
    apart = rng.random((3, 40)) < np.array([[0.2], [0.5], [0.8]])
    low, high = accuracy_interval(apart, groups, level=0.95)
    assert high - low > 0.8, "three fits that disagree say little about a fourth"


@pytest.mark.parametrize(
    ("train", "test", "status", "reason"),
    [
        (None, np.arange(50) % 2, "not-captured", "the training examples of the probe task have no labels"),
        (np.linspace(0, 1, 40), np.arange(50) % 2, "undefined", "the labels of the training examples are numbers"),
        (
            np.zeros(40, dtype=int),
            np.arange(50) % 2,
            "undefined",
            "all training examples of the probe task have the same",
        ),
        (
            np.array([0] * 37 + [1] * 3),
            np.arange(50) % 2,
            "insufficient-sample",
            "a class has 3 training examples; at least 5",
        ),
        (np.arange(40) % 2, np.arange(10) % 2, "insufficient-sample", "10 test examples; at least 30 are needed"),
    ],
)
def test_tasks_that_cannot_be_probed(train, test, status, reason):
    run = fake_run()
    run.tasks["subj"] = (examples(train), examples(test, first=1000))
    frame = probe_suite(moments(run)).frame
    assert frame["status"].tolist() == [status]
    assert frame["reason"].iloc[0].startswith(reason)


def test_runs_without_what_is_asked_for():
    run = fake_run()
    with pytest.raises(
        UsageError, match=r"`tasks` must be among the probe tasks that were captured \(subj\); got 'wic'"
    ):
        probe_suite(moments(run), tasks=("wic",))
    with pytest.raises(UsageError, match=r"`layers` must be among those that were captured, \[0, 1\]; got 7"):
        probe_suite(moments(run), layers=(1, 7))
    assert set(rows(probe_suite(moments(run), layers=(1,)), "by_layer")["layer"]) == {1}
    bare = FakeRun({0: run[0]}, {})
    frame = probe_suite(moments(bare)).frame
    assert frame["status"].tolist() == ["not-captured"]
    assert frame["reason"].iloc[0] == "run holds no probe tasks; name them when capturing: --probe-task NAME"
    with pytest.raises(UsageError, match=r"captured \(none; name them when capturing: --probe-task NAME\)"):
        probe_suite(moments(bare), tasks=("subj",))
    later = probe_suite(moments(fake_run(steps=(10, 50))))
    unknown = rows(later, "change").iloc[0]
    assert unknown["status"] == "not-captured"
    assert unknown["reason"] == "the pretrained encoder is not known: the first snapshot is of step 10"
    assert not later.findings
    mixed = probe_suite((*moments(run), *moments(FakeRun({0: run[0]}, {}, path=run.path / "bare"))))
    assert set(mixed.select(status="not-captured")["run_a"]) == {"bare"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.0,)}, r"`fractions` must be shares of the training examples in \(0, 1\]; got \[0.0\]"),
        ({"fractions": ()}, "`fractions` must be shares"),
        ({"n_seeds": 0}, "`n_seeds` must be at least 1; got 0"),
        ({"margin": 1.0}, "`margin` must be a difference in accuracy"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        probe_suite(moments(fake_run()), **options)


def test_progress_and_repetition():
    seen = []
    run = fake_run()
    first = probe_suite(moments(run), progress=lambda *now: seen.append(now))
    assert seen[-1] == (3, 3, "probe tasks")  # two snapshots and the random encoder
    pd.testing.assert_frame_equal(first.table, probe_suite(moments(run)).table)


def test_verdicts():
    assert verdict(-0.01, 0.01, margin=0.02) == "retained within 2 points"
    assert verdict(0.001, 0.015, margin=0.02) == "retained within 2 points"  # surely better, surely not by two points
    assert verdict(0.001, 0.025, margin=0.02) == "improved"
    assert verdict(-0.02, 0.0, margin=0.02) == "cannot tell"
    assert verdict(-0.03, -0.001, margin=0.02) == "degraded"
    assert verdict(0.0, 0.0, margin=0.0) == "cannot tell"
    assert detectable_change(-0.9, 0.9, level=0.95) == 1.0


@pytest.mark.slow
def test_verdicts_are_seldom_wrong():
    """Of probes that lose 10 points: never called improved or retained; of equal ones: 5 % at most called changed."""
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(400)]
    found = {}
    for loss in (0.0, 0.1):
        said = []
        for _ in range(400):
            before = rng.random((1, 400)) < 0.85
            flipped = rng.random((1, 400))
            after = np.where(before, flipped >= 0.05 + loss / 0.85, flipped < 0.05 * 0.85 / 0.15)
            low, high = change_interval(before, after, groups, level=0.95)
            said.append(verdict(low, high, margin=0.02))
        found[loss] = said
    assert sum(word in ("improved", "degraded") for word in found[0.0]) <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05)
    assert set(found[0.1]) <= {"degraded", "cannot tell"}
    assert found[0.1].count("degraded") > 0.9 * 400


@pytest.mark.slow
def test_several_subsets_widen_the_interval_as_they_should():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        skill = 0.8 + 0.05 * rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(1, 300))
        right = rng.random((5, 300)) < skill.clip(0, 1)
        low, high = accuracy_interval(right, [str(i) for i in range(300)], level=0.95)
        covered += low <= 0.798 <= high  # a little below 0.8, where the skill is clipped at 1
    assert 0.92 < covered / 1000 < 0.98
