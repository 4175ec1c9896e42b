"""A result as the analysis makes it, with made-up numbers of realistic shape."""

from types import SimpleNamespace

import numpy as np
import pytest

from dynprobe.result import MetricInfo, Result

STEPS = (0, 50, 100, 200, 400, 800)
METRICS = {
    "attention_js_divergence": MetricInfo(
        "attention JS divergence", "nats", "0 when a layer attends as before.", (0.0, 0.6931)
    ),
    "svcca_similarity": MetricInfo(
        "SVCCA similarity", "1", "1 when two layers hold the same up to a linear map.", (0.0, 1.0)
    ),
    "linear_cka_similarity": MetricInfo(
        "linear CKA similarity", "1", "1 when examples lie alike in both layers.", (0.0, 1.0)
    ),
    "isoscore": MetricInfo(
        "IsoScore", "1", "1 when the vectors fill all directions alike; 0 when they lie on a line.", (0.0, 1.0)
    ),
    "effective_rank": MetricInfo("effective rank", "dimensions", "How many directions the vectors use.", (1.0, None)),
    "cls_std_mean": MetricInfo(
        "spread of pooled vectors", "1", "0 when all examples have the same vector.", (0.0, None)
    ),
    "probe_accuracy": MetricInfo(
        "probe accuracy", "accuracy", "Share of examples that a linear classifier gets right.", (0.0, 1.0)
    ),
    "prediction_flip_rate": MetricInfo(
        "prediction flip rate", "1", "Share of examples whose answer changed.", (0.0, 1.0)
    ),
    "output_symmetric_kl": MetricInfo(
        "output symmetric KL", "nats", "0 when both answer with the same probabilities.", (0.0, None)
    ),
    "accuracy": MetricInfo("accuracy", "accuracy", "Share of right answers.", (0.0, 1.0)),
    "mean_nll": MetricInfo(
        "mean negative log-likelihood", "nats", "0 when every answer is right and certain.", (0.0, None)
    ),
    "my_own_metric": MetricInfo("my own metric", "furlongs", "Something that this package has never heard of."),
}


FEW_ROWS = (
    {"metric": "accuracy", "comparison": "within", "run_a": "seed 1", "step_a": 5, "value": 0.75},
    {"metric": "isoscore", "comparison": "within", "run_a": "seed 1", "step_a": 5, "layer": 1, "value": 0.5},
)


def _value(metric, progress, depth, bend):
    """Made-up but plausible: later steps and deeper layers differ more."""
    change = progress**0.6 * depth**2 * bend
    if metric.endswith("_similarity"):
        return 1 - 0.55 * change
    if metric.endswith("_divergence"):
        return 0.32 * change
    return {
        "isoscore": 0.42 - 0.35 * change,
        "effective_rank": 120 - 100 * change,
        "cls_std_mean": 0.6 - 0.4 * change,
    }.get(metric, 0.55 + 0.3 * depth * (0.4 + 0.6 * progress * bend))


def _layer_rows(runs, steps, layers, heads):
    for number, run in enumerate(runs):
        bend = 1 - 0.35 * number
        for step, layer in ((s, x) for s in steps for x in range(layers)):
            depth, progress = (layer + 1) / layers, step / max(max(steps), 1)
            common = {"run_a": run, "step_a": step, "layer": layer, "stack": "model", "n": 256, "n_kept": 256}
            for metric in ("isoscore", "effective_rank", "probe_accuracy"):
                value = _value(metric, progress, depth, bend)
                chance = 0.5 if metric == "probe_accuracy" else None
                yield {
                    **common,
                    "metric": metric,
                    "comparison": "within",
                    "value": value,
                    "low": value * 0.96,
                    "high": value * 1.03,
                    "chance": chance,
                    "reference": {"isoscore": 0.56, "effective_rank": 500.0}.get(metric),
                }
            for position in ("first", "mean", "last"):
                yield {
                    **common,
                    "metric": "cls_std_mean",
                    "comparison": "within",
                    "position": position,
                    "value": _value("cls_std_mean", progress, depth, bend),
                }
            pairs = [("from_start", step, run, steps[0])] if step != steps[0] else []
            if step != steps[0]:
                pairs.append(("consecutive", step, run, steps[steps.index(step) - 1]))
            if number == 0 and len(runs) > 1:
                pairs.append(("between", step, runs[1], step))
            for comparison, step_a, run_b, step_b in pairs:
                extra = {**common, "comparison": comparison, "step_a": step_a, "run_b": run_b, "step_b": step_b}
                for metric in ("attention_js_divergence", "svcca_similarity", "linear_cka_similarity"):
                    value = _value(metric, progress, depth, bend * (0.3 if comparison == "consecutive" else 1))
                    similar = metric.endswith("_similarity")
                    yield {
                        **extra,
                        "metric": metric,
                        "value": value,
                        "low": value - 0.02,
                        "high": value + 0.02 * (value < 0.98),
                        "chance": 0.11 if similar else None,
                    }
                if step == max(steps):
                    for head in range(heads):
                        yield {
                            **extra,
                            "metric": "attention_js_divergence",
                            "head": head,
                            "value": 0.32 * progress * depth**2 * bend * (1 + np.sin(head * 3.1 + layer)) / 2,
                        }


def _output_rows(runs, steps):
    for number, run in enumerate(runs):
        for step in steps:
            progress = step / max(max(steps), 1)
            common = {"run_a": run, "step_a": step, "n": 256}
            score = 0.5 + (0.34 - 0.05 * number) * progress**0.5
            for metric, value in (
                ("accuracy", score),
                ("mean_nll", 0.7 - 0.3 * progress),
                ("my_own_metric", 7 * progress),
            ):
                yield {
                    **common,
                    "metric": metric,
                    "comparison": "within",
                    "value": value,
                    "low": value - 0.03,
                    "high": value + 0.03,
                }
            for metric, value in (("prediction_flip_rate", 0.4 * progress), ("output_symmetric_kl", 1.7 * progress)):
                yield {
                    **common,
                    "metric": metric,
                    "comparison": "from_start",
                    "run_b": run,
                    "step_b": steps[0],
                    "value": value,
                    "low": value * 0.9,
                    "high": value * 1.1,
                }
                if number == 0 and len(runs) > 1:
                    yield {
                        **common,
                        "metric": metric,
                        "comparison": "between",
                        "run_b": runs[1],
                        "step_b": step,
                        "value": value / 2,
                    }


def _logs(runs, steps):
    def entry(step, number):
        progress = step / max(max(steps), 1)
        return {"step": step, "loss": 0.7 - 0.4 * progress + 0.05 * np.sin(step / 7.0 + number), "learning_rate": 2e-5}

    last = max(steps)
    return {
        run: [entry(step, number) for step in range(10, last + 1, 10)]
        + [
            {"step": s, "eval_loss": 0.7 - 0.2 * s / last, "eval_accuracy": 0.5 + 0.3 * s / last, "eval_runtime": 3.0}
            for s in steps
            if s
        ]
        for number, run in enumerate(runs)
    }


def _facts(number, steps):
    return {
        "model": "bert-base-uncased",
        "task": "CoLA",
        "seed": number,
        "created": "2025-01-02T03:04:05Z",
        "path": f"runs/{number}",
        "probe": "3fa94c",
        "steps": list(steps),
        "versions": {"torch": "2.13", "transformers": "5.23"},
        "command": "dynprobe run -- python train.py",
    }


def make_result(runs=("seed 1", "seed 2"), *, steps=STEPS, layers=6, heads=12, change=None, **fields):
    """A made-up result; ``change`` may rewrite each row before the table is made."""
    rows = [*_output_rows(runs, steps), *_layer_rows(runs, steps, layers, heads)]
    arrays = {}
    if layers > 1:
        near = np.exp(-np.abs(np.subtract.outer(np.arange(layers), np.arange(layers))) / 2.0)
        for run in runs:
            arrays[f"svcca_layers:{run}@{steps[0]}|{run}@{steps[-1]}"] = near * np.linspace(1, 0.6, layers)
    given = {
        "title": f"What fine-tuning changed: {' and '.join(runs)}",
        "table": [change(dict(row)) if change else row for row in rows],
        "metrics": METRICS,
        "arrays": arrays,
        "findings": (
            f"The last layer of {runs[0]} changed most: SVCCA similarity with its start fell to 0.45.",
            "Attention moved in layers 4 and 5 alone (JS divergence up to 0.32 nats).",
            "40% of the answers on the probe inputs differ from those before training.",
        ),
        "notes": ("The probe inputs come from the training data.", "Runs are aligned by step."),
        "provenance": {
            "scalars": _logs(runs, steps) if max(steps) else {},
            "runs": {run: _facts(number, steps) for number, run in enumerate(runs)},
            "command": "dynprobe compare a b",
        },
    }
    return Result(**{**given, **fields})


def spoil(row):
    """Make a few rows untrusted, and one not a number."""
    if row["metric"] == "svcca_similarity" and row["layer"] == 2:
        row |= {"status": "insufficient-sample", "reason": "needs 768 examples; got 256", "value": 12345.0}
    if row["metric"] == "probe_accuracy" and row["layer"] == 1:
        row |= {"status": "not-captured", "reason": "no labels"}
    if row["metric"] == "attention_js_divergence" and row["layer"] == 3 and row.get("head") in (None, 4):
        row["value"] = float("nan")
    return row


@pytest.fixture(scope="session")
def build():
    """The builder of results, its metrics, and a table of few rows."""
    return SimpleNamespace(result=make_result, metrics=METRICS, few_rows=FEW_ROWS)


@pytest.fixture(scope="session")
def two_runs():
    """Two runs, six layers, twelve heads, six steps; some values not measured."""
    return make_result(change=spoil)


@pytest.fixture(scope="session")
def page(two_runs):
    """The page of ``two_runs``; rendered once, since drawing takes seconds."""
    from dynprobe.report import render_html

    return render_html(two_runs)


@pytest.fixture(scope="session")
def drawn(two_runs):
    """The pictures of ``two_runs``, as data."""
    from dynprobe.report import pictures

    return pictures(two_runs)
