"""Whether fine-tuning destroys what the encoder knew, and whether R3F and its relatives keep it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from collapse_chain import (
    Chain,
    Measure,
    after_first,
    by_seed,
    chains_of,
    first_trainings,
    other_tasks,
    others_by_layer,
    retention,
    source_change,
    source_probes,
)
from collapse_claims import MARGIN, RELEASED_NOISE, SHARE_MARGIN, STANDARD, statements
from collapse_noise import NoiseRow, noise_rows

from dynprobe.analysis.knowledge import UNCLEAR, detectable_change, verdict
from dynprobe.cli.study import study_command
from dynprobe.errors import DynprobeError
from dynprobe.experiments.over_seeds import OverSeeds, beside
from dynprobe.experiments.results import Results, cells_by_model, cells_of
from dynprobe.experiments.statements import FAILS, HOLDS, OPEN, Statement, headlines, judge, listed
from dynprobe.experiments.tables import arm_table, interval, markdown, points, score_frame, versions_of
from dynprobe.metrics import MeanDifference
from dynprobe.report.panels import Panel, curves, differences, list_height, save_panels

Chains = Mapping[str, Sequence[Chain]]


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    models = cells_by_model(results)
    chains = {model: chains_of(own, cycles=1) for model, own in models.items()}
    example = next(iter(next(iter(chains.values())).values()))[0]
    probed, judged = _probed(example), _judged(results)
    return {
        "chain": " → ".join(example.tasks),
        "probed": probed,
        "n_probe": str(example.n_probe),
        "trainings": _trainings(models, chains),
        "margin": f"{100 * MARGIN:g}",
        "share_margin": f"{100 * SHARE_MARGIN:g}",
        "holds": listed(judged, HOLDS),
        "fails": listed(judged, FAILS),
        "open": listed(judged, OPEN),
        "n_claims": str(max(map(len, judged.values()))),
        "scores": _each(models, lambda model: _score_table(models[model], chains[model])),
        "generalisation": _each(models, lambda model: _generalisation_table(chains[model])),
        "matrix": _each(models, lambda model: _matrix_table(models[model])),
        "layers": _layers(chains, figures / "layers.png"),
        "degradation": _degradation(chains, figures / "degradation.png"),
        "retention": _retention(models, figures / "retention.png"),
        "noise": _noise(models, figures / "noise.png"),
        "versions": versions_of(results),
        "n_cells": str(len(cells_of(results))),
        "n_trainings": str(sum(len(result["stages"]) for result in cells_of(results))),
    }


def summary(results: Results) -> list[tuple[str, str, str]]:
    """The claims: claim, what was measured, verdicts."""
    judged = _judged(results)
    return list(headlines(judged, list(dict.fromkeys(said.text for found in judged.values() for said in found))))


def _probed(example: Chain) -> str:
    """The tasks that are probed, and why others are not.

    Raises
    ------
    DynprobeError
        When a task of the chain could not be probed, or was not to be.
    """
    refused = {task: found["reason"] for task, found in example.stages[0]["probes"].items() if "status" in found}
    missing = [task for task in example.tasks if task not in example.probed]
    if missing:
        why = refused.get(missing[0], "it is not among the `probes` of the experiment")
        raise DynprobeError(f"every task of the chain must be probed; got none of {missing[0]}: {why}")
    return ", ".join(example.probed) + "".join(f" ({task} could not be probed: {why})" for task, why in refused.items())


def _judged(results: Results) -> dict[str, list[Statement]]:
    """The claims about each model, corrected together."""
    return {model: judge(statements(own)) for model, own in cells_by_model(results).items()}


def _each(models: Mapping[str, Results], table: Any) -> str:
    """A table for each model that has one."""
    parts = [(model, table(model)) for model in models]
    return "\n\n".join(f"**{model}**\n\n{found}" for model, found in parts if found) or "Not measured."


def _trainings(models: Mapping[str, Results], chains: Mapping[str, Chains]) -> str:
    rows = []
    for model, own in models.items():
        setup = own[0]["stages"][0]["setup"]
        seeds = {arm: len(found) for arm, found in chains[model].items()}
        rows.append(
            [
                model, str(setup["train_examples"]), str(own[0]["stages"][0]["n_test"]), str(setup["max_steps"]),
                str(setup["batch_size"]), f"{setup['learning_rate']:g}", str(seeds[STANDARD]), ", ".join(seeds),
            ]
        )  # fmt: skip
    header = [
        "model",
        "training examples",
        "test examples",
        "steps of each training",
        "batch",
        "learning rate",
        "seeds",
    ]
    return markdown([*header, "methods along the chain"], rows)


def _gap(own: OverSeeds, other: OverSeeds) -> str:
    """The difference with its interval, or a dash."""
    found = beside(own, other).paired
    return "–" if found is None else interval(found.difference, found.low, found.high)


def _beside_standard(chains: Chains, arm: str, measure: Measure) -> str:
    """Method − standard, paired by seed."""
    return "–" if arm == STANDARD else _gap(by_seed(chains[arm], measure), by_seed(chains[STANDARD], measure))


def _score_table(own: Results, chains: Chains) -> str:
    """Scores on the first task, with what each method costs."""
    frame = score_frame(own)
    frame = frame[(frame["stage"] == 0) & frame["arm"].isin(chains)]
    steps = {arm: found[0].stages[0]["setup"]["max_steps"] for arm, found in chains.items()}
    rows = []
    for row in arm_table(frame, reference=STANDARD, margin=MARGIN).to_dict("records"):
        arm, said = row["arm"], row.get("verdict")
        passes = np.mean([_passes(chain.stages[0]["training"]) for chain in chains[arm]])
        rows.append(
            [
                arm, str(row["n"]), points(row.get("median")), points(row.get("sd")), points(row.get("max")),
                interval(row.get("difference"), row.get("low"), row.get("high")),
                said if isinstance(said, str) else "–", f"{steps[arm] / steps[STANDARD] * passes:.2f}",
            ]
        )  # fmt: skip
    return markdown(["method", "seeds", "median", "sd", "best of n", "difference [95 %]", "verdict", "cost"], rows)


def _passes(training: Mapping[str, Any]) -> float:
    """Forward and backward passes of a training step, in those of standard training."""
    extra = (np.mean(training.get(name, [0.0])) for name in ("extra_forwards", "extra_backwards"))
    forward, backward = (1.0 + float(each) for each in extra)
    return (forward + 2 * backward) / 3


def _generalisation_table(chains: Chains) -> str:
    """Probes of the other tasks after the first training, by method; the pretrained and the random encoder beside."""
    example = chains[STANDARD][0]
    others = other_tasks(example)
    rows = [
        ["commonest class", *(points(example.chance[task]) for task in others), "–", "–"],
        ["random encoder", *(points(example.random(task)) for task in others), "–", "–"],
        ["pretrained", *(points(example.start(task)) for task in others), "–", "–"],
    ]
    for arm, own in chains.items():
        means = [points(float(np.mean([chain.probe(0, task) for chain in own]))) for task in others]
        change = _gap(by_seed(own, after_first), by_seed(own, lambda chain: after_first(chain, at_start=True)))
        rows.append([arm, *means, change, _beside_standard(chains, arm, after_first)])
    return markdown(["encoder", *others, "mean − pretrained's [95 %]", "mean − standard's [95 %]"], rows)


def _matrix_table(own: Results) -> str:
    """For each method and task that it was trained on, how far the probe of every task is from the pretrained encoder's."""
    rows = []
    for method, by_task in first_trainings(own).items():
        for task, chains in by_task.items():
            changes = []
            for probed in chains[0].probed:
                after, before = (by_seed(chains, lambda chain, s=s, t=probed: chain.probe(s, t)) for s in (0, -1))
                changes.append(_gap(after, before))
            rows.append([f"{method}, on {task}", str(len(chains)), *changes])
    if not rows:
        return ""
    example = next(iter(chains_of(own, cycles=1).values()))[0]
    return markdown(["trained", "seeds", *(f"{task} [95 %]" for task in example.probed)], rows)


def _layers(chains: Mapping[str, Chains], path: Path) -> str:
    """Mean probe of the other tasks at each layer: pretrained, after the first training, and after the whole chain."""
    panels = []
    for model, arms in chains.items():
        at = list(range(len(others_by_layer(arms[STANDARD][0], -1))))
        start = np.array([others_by_layer(arms[STANDARD][0], -1)])
        for stage, words in ((0, "after the first training"), (-1, "after the chain")):
            series = {"pretrained": (at, 100 * start)}
            for arm in (arm for arm in (STANDARD, "r3f", "r4f") if arm in arms):
                last = len(arms[arm][0].tasks) - 1 if stage < 0 else stage
                series[arm] = (at, 100 * np.array([others_by_layer(chain, last) for chain in arms[arm]]))
            panels.append(
                curves(series, title=f"{model}, {words}", x_label="layer", y_label="accuracy, %", whole_x=True)
            )
    save_panels(path, panels)
    return f"![Probes of the other tasks by layer](figures/{path.name})"


def _degradation(chains: Mapping[str, Chains], path: Path) -> str:
    """Probe of the first task after each training of the chain."""
    panels, tables = [], []
    for model, arms in chains.items():
        example = arms[STANDARD][0]
        at = list(range(1, len(example.tasks) + 1))
        series = {arm: np.array([source_probes(chain) for chain in own]) for arm, own in arms.items()}
        panels.append(
            curves(
                {arm: (at, 100 * values) for arm, values in series.items()},
                title=f"{model}: probe of {example.tasks[0]}",
                x_label=f"after training on ({', '.join(example.tasks)})",
                y_label="accuracy of the probe, %",
                whole_x=True,
            )
        )
        gaps = {arm: _change(own) for arm, own in arms.items()}
        forest = {arm: _in_points(gap) for arm, gap in gaps.items() if gap is not None}
        panels.append(_forest(forest, f"{model}: from first to last training"))
        rows = [
            [
                arm, *(points(value) for value in values.mean(axis=0)), _interval(gaps[arm]), _direction(gaps[arm]),
                _beside_standard(arms, arm, source_change),
            ]
            for arm, values in series.items()
        ]  # fmt: skip
        header = [
            "method",
            *(f"after {task}" for task in example.tasks),
            "last − first [95 %]",
            "verdict",
            "− standard's",
        ]
        tables.append(f"**{model}**\n\n{markdown(header, rows)}")
    most = max(len(arms) for arms in chains.values())
    save_panels(path, panels, height=max(3.2, list_height(most)))
    return "\n\n".join([f"![Probe of the first task along the chain](figures/{path.name})", *tables])


def _change(chains: Sequence[Chain]) -> MeanDifference | None:
    first, last = (by_seed(chains, lambda chain, at=at: float(source_probes(chain)[at])) for at in (0, -1))
    return beside(last, first).paired


def _direction(gap: MeanDifference | None) -> str:
    if gap is None:
        return "too few seeds"
    said = verdict(gap.low, gap.high, margin=MARGIN)
    if said != UNCLEAR:
        return said
    return f"{said}; smallest detectable change {points(detectable_change(gap.low, gap.high, level=0.95))}"


def _interval(gap: MeanDifference | None) -> str:
    return "–" if gap is None else interval(gap.difference, gap.low, gap.high)


def _in_points(gap: MeanDifference) -> tuple[float, float, float]:
    return 100 * gap.difference, 100 * gap.low, 100 * gap.high


def _forest(rows: Mapping[str, tuple[float, float, float]], title: str, x_label: str = "points") -> Panel:
    return differences(rows, title=title, x_label=x_label, margin=100 * MARGIN)


def _retention(models: Mapping[str, Results], path: Path) -> str:
    """Probe of each task just before it is trained on again, mean over the tasks, by cycle."""
    panels, tables = [], []
    for model, own in models.items():
        cycles = chains_of(own, cycles=2)
        if not cycles:
            continue
        means = {arm: np.array([retention(chain).mean(axis=1) for chain in found]) for arm, found in cycles.items()}
        at = list(range(1, 1 + next(iter(means.values())).shape[1]))
        panels.append(
            curves(
                {arm: (at, 100 * values) for arm, values in means.items()},
                title=f"{model}: mean probe of each task before it is trained on",
                x_label="cycle",
                y_label="accuracy of the probe, %",
                whole_x=True,
            )
        )
        rows = []
        for arm, values in means.items():
            last, first = (by_seed(cycles[arm], lambda chain, n=n: retention(chain)[n].mean()) for n in (-1, 0))
            rows.append([arm, str(len(values)), *(points(value) for value in values.mean(axis=0)), _gap(last, first)])
        header = ["method", "seeds", *(f"cycle {number}" for number in at), "last − first [95 %]"]
        tables.append(f"**{model}**\n\n{markdown(header, rows)}")
    if not panels:
        return "No chain with cycles was run."
    save_panels(path, panels)
    return "\n\n".join([f"![Probes by cycle](figures/{path.name})", *tables])


def _noise(models: Mapping[str, Results], path: Path) -> str:
    """Divergence between clean and noisy pass by noise and dropout, and what it does to the score."""
    found = {model: rows for model, own in models.items() if (rows := noise_rows(own))}
    if not found:
        return "The grid of noise and dropout was not run."
    panels, tables = [], []
    for model, rows in found.items():
        for with_dropout, base in ((True, "no noise"), (False, "standard")):
            own = [row for row in rows if row.with_dropout is with_dropout]
            shown = {f"{row.noise:g}": _in_points(row.gap) for row in own if row.gap is not None}
            if shown:
                words = f"{model}, {'with' if with_dropout else 'without'} dropout"
                panels.append(_forest(shown, words, f"accuracy, points above {base}"))
        header = [
            "noise",
            "dropout",
            "divergence, nats",
            "without the noise, % of it [95 %]",
            "dropout alone, other masks, %",
            "score",
            "difference [95 %]",
        ]
        tables.append(f"**{model}**\n\n{markdown(header, map(_noise_row, rows))}")
    save_panels(path, panels, height=list_height(4))
    alone = [_without_dropout(rows) for rows in found.values()]
    return "\n\n".join(
        [f"![Score by noise, with and without dropout](figures/{path.name})", *tables, *filter(None, alone)]
    )


def _noise_row(row: NoiseRow) -> list[str]:
    share = beside(row.share, row.all_dropout).mean
    ends = [] if share is None else [100 * (1 + value) for value in (share.difference, share.low, share.high)]
    part = "{:.2f} [{:.2f}, {:.2f}]".format(*ends) if ends else "–"
    measured = f"{100 * np.median(row.measured):.1f}" if row.measured and row.with_dropout else "–"
    dropout = "as pretrained" if row.with_dropout else "none"
    score = points(float(row.score.array.mean()))
    return [f"{row.noise:g}", dropout, f"{row.divergence:.2e}", part, measured, score, _interval(row.gap)]


def _without_dropout(rows: Sequence[NoiseRow]) -> str:
    """The divergence at the released scale, with dropout and in a model without it."""
    both = {row.with_dropout: row.divergence for row in rows if row.noise == RELEASED_NOISE}
    if len(both) < 2:
        return ""
    return (
        f"At the released scale, {RELEASED_NOISE:g}, the noise makes a divergence of {both[False]:.1e} nats in a model without "
        f"dropout; with dropout the whole is {both[True]:.1e}."
    )


if __name__ == "__main__":
    study_command(__file__, render)()
