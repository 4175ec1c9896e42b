"""Few training examples: Adam with and without bias correction, re-initialised blocks, more steps, stabilisers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dynprobe.cli.study import study_command
from dynprobe.experiments.claims import FAILS, HOLDS, OPEN
from dynprobe.experiments.grid import cells_of
from dynprobe.experiments.stability import (
    NEAR_GUESSING,
    mean_ratio,
    pulled_share,
    scheduled_rates,
    trial_frame,
)
from dynprobe.experiments.statements import (
    Statement,
    beside,
    fails_more,
    judge_statements,
    larger,
    p_words,
    same,
    share_words,
    smaller,
    varies,
)
from dynprobe.experiments.tables import interval, markdown, points
from dynprobe.finetune import bias_correction_ratio
from dynprobe.finetune import method as make_method
from dynprobe.metrics import best_of_n, failed_runs, holm
from dynprobe.report.panels import Panel, curves, differences, list_height, save_panels, scores

MARGIN = 0.02
ADAM, BERT, TIMES, OVER, STEADY = "adam", "bert-adam", "adam-times-r", "bert-adam-over-r", "adam-steady"
OPTIMIZERS = (ADAM, BERT, TIMES, OVER, STEADY)
_NAMES = {
    ADAM: "Adam",
    BERT: "BERTAdam",
    TIMES: "Adam, steps × r(t)",
    OVER: "BERTAdam, steps ÷ r(t)",
    STEADY: "Adam, rate × mean r(t)",
    "layer-rates": "layer-wise rates",
    "mixout": "Mixout",
    "pull": "pull to the start",
    "weight-decay": "weight decay",
    "intermediate": "intermediate task",
}
_SHOWN_STEPS = 1000  # of r(t)

Results = Sequence[Mapping[str, Any]]
Arms = Mapping[str, pd.DataFrame]
Cells = Mapping[str, list[Mapping[str, Any]]]


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    models = arms_of(results)
    cells = {model: _cells(results, model) for model in models}
    judged = {model: judge_statements(statements(arms, moved(cells[model]))) for model, arms in models.items()}
    return {
        "trainings": _trainings(models, cells),
        "summary": "\n".join(_summary(model, arms) for model, arms in models.items()),
        "holds": _listed(judged, HOLDS),
        "fails": _listed(judged, FAILS),
        "open": _listed(judged, OPEN),
        "n_claims": str(max(map(len, judged.values()))),
        "margin": f"{100 * MARGIN:g}",
        "near": f"{NEAR_GUESSING:g}",
        "ratio": _ratio_said(cells),
        "best": "\n".join(_best_said(model, arms) for model, arms in models.items() if BERT in arms),
        "scores": "\n\n".join(f"**{model}**\n\n{_score_table(arms)}" for model, arms in models.items()),
        "beside": "\n\n".join(f"**{model}**\n\n{_beside_table(arms)}" for model, arms in models.items()),
        "decay": "\n".join(_decay_said(cells)),
        "limits": _limits(models),
        "version": results[0]["dynprobe"],
        "n_cells": str(len(cells_of(results))),
        **_draw(models, cells, figures),
    }


def arms_of(results: Results) -> dict[str, dict[str, pd.DataFrame]]:
    """Model, and arm, to its rows of :func:`~dynprobe.experiments.stability.trial_frame`."""
    frame = trial_frame(results)
    return {
        str(model): {str(arm): own for arm, own in part.groupby("arm", sort=False)}
        for model, part in frame.groupby("model", sort=False)
    }


def moved(cells: Cells) -> dict[str, pd.DataFrame]:
    """How far the weights of each block moved in the last training: for each arm, seeds by blocks, relative to their norm."""
    found = {}
    for arm, own in cells.items():
        rows = {cell["seed"]: cell["stages"][-1]["weights"] for cell in own}
        found[arm] = pd.DataFrame.from_dict(rows, orient="index").filter(regex="^block_")
    return found


def statements(arms: Arms, weights: Mapping[str, pd.DataFrame]) -> list[Statement]:
    """What the paper claims, as far as the arms of one model can tell; to be judged together.

    Parameters
    ----------
    arms
        Arm to its rows, of :func:`arms_of`.
    weights
        Arm to how far the weights moved, of :func:`moved`.
    """
    adam, found = arms[ADAM], _optimizer_statements(arms)
    for arm, own in arms.items():
        name = name_of(arm)
        if arm.startswith("reinit"):
            top = list(weights[ADAM])[-int(arm.partition("-")[2]) :]
            near = (part.assign(moved=part["seed"].map(weights[kind][top].mean(axis=1)))
                    for kind, part in ((arm, own), (ADAM, adam)))  # fmt: skip
            found += [
                larger(f"With {name} the scores are higher", own, adam, margin=MARGIN),
                smaller(f"With {name} the training loss of the first half is lower", own, adam, column="early_loss"),
                smaller(f"With {name} these end nearer to their start than if pretrained", *near, column="moved"),
            ]
        elif arm.startswith("steps"):
            found.append(larger(f"With {name} the scores are higher", own, adam, margin=MARGIN))
            found.append(varies(f"With {name} the scores vary less", own, adam, more=False))
        elif arm not in OPTIMIZERS:
            found.append(larger(f"With a stabiliser, {name}, the scores of Adam are higher", own, adam, margin=MARGIN))
    return found


def _optimizer_statements(arms: Arms) -> list[Statement]:
    """Whether BERTAdam is worse than Adam, and whether it is so by the length of its steps alone."""
    adam, bert, found = arms[ADAM], arms.get(BERT), []
    if bert is None:
        return []
    failed = [~part.set_index("seed")["fitted"] for part in (bert, adam)]
    found += [
        smaller("Without bias correction (BERTAdam) the scores are lower than with Adam", bert, adam, margin=MARGIN),
        varies("Without bias correction the scores vary more", bert, adam, more=True),
        larger("Without bias correction the last training loss is higher", bert, adam, column="final_loss"),
        fails_more("Without bias correction more runs never fit their training examples", *failed),
    ]
    if TIMES in arms:
        text = "Adam with steps r(t) times as long scores"
        found.append(smaller(f"{text} lower than Adam", arms[TIMES], adam, margin=MARGIN))
        found.append(same(f"{text} as BERTAdam does", arms[TIMES], bert, margin=MARGIN))
    if OVER in arms:
        text = "BERTAdam with steps divided by r(t) scores"
        found.append(larger(f"{text} higher than BERTAdam", arms[OVER], bert, margin=MARGIN))
        found.append(same(f"{text} as Adam does", arms[OVER], adam, margin=MARGIN))
    if STEADY in arms:
        text = "Adam at a rate that is larger throughout, by the mean of r(t), scores as BERTAdam does"
        found.append(same(text, arms[STEADY], bert, margin=MARGIN))
    return found


def name_of(arm: str) -> str:
    """What an arm is called on the page."""
    kind, _, number = arm.partition("-")
    if kind == "reinit":
        return f"{number} block{'s' * (number != '1')} re-initialised"
    if kind == "steps":
        return f"{number.removesuffix('x')} times the steps"
    return _NAMES.get(arm, arm)


def _cells(results: Results, model: str) -> dict[str, list[Mapping[str, Any]]]:
    own = [cell for cell in cells_of(results) if cell["model"] == model]
    return {arm: [cell for cell in own if cell["arm"] == arm] for arm in dict.fromkeys(cell["arm"] for cell in own)}


def _setup(cells: Cells, arm: str = ADAM) -> Mapping[str, Any]:
    found: Mapping[str, Any] = cells[arm][0]["stages"][-1]["setup"]
    return found


def _listed(judged: Mapping[str, Sequence[Statement]], verdict: str) -> str:
    lines = []
    for model, said in ((model, said) for model, found in judged.items() for said in found if said.verdict == verdict):
        p = f"p {p_words(said.p)}" if said.p < 0.001 else f"p = {p_words(said.p)}"
        lines.append(f"* **{model}**: {said.text}: {said.shown}, {p}.")
    return "\n".join(lines) or "Nothing."


def _trainings(models: Mapping[str, Arms], cells: Mapping[str, Cells]) -> str:
    rows = []
    for model, arms in models.items():
        setup, stage = _setup(cells[model]), cells[model][ADAM][0]["stages"][-1]
        rows.append(
            [
                model, setup["task"], str(stage["n_classes"]), str(setup["train_examples"] or "all"), str(stage["n_test"]),
                str(setup["max_steps"]), str(setup["batch_size"]), f"{setup['learning_rate']:g}",
                f"{mean_ratio(setup):.2f}", str(len(arms[ADAM])),
            ]
        )  # fmt: skip
    header = ["model", "task", "classes", "training examples", "test examples", "steps", "batch", "learning rate"]
    return markdown([*header, "mean of r(t)", "seeds, up to"], rows)


def _summary(model: str, arms: Arms) -> str:
    said = [
        f"{name_of(arm)} {points(own['score'].mean())} ± {points(own['score'].std())} %, {share_words(~own['fitted'])} never fit"
        for arm, own in arms.items()
        if arm in (ADAM, BERT)
    ]
    return f"* **{model}**: {'; '.join(said)}."


def _score_table(arms: Arms) -> str:
    rows = []
    for arm, own in arms.items():
        values, fitted = own["score"], own[own["fitted"]]["score"]
        share = majority_share(own)
        rows.append(
            [
                name_of(arm), str(len(own)), points(values.mean()), points(values.std()), points(values.median()),
                points(values.min()), share_words(~own["fitted"]), "–" if share is None else share_words(share),
                f"{own['final_loss'].mean():.2f} ({own['final_loss'].max():.2f})", points(fitted.std()),
            ]
        )  # fmt: skip
    header = ["training", "seeds", "mean", "sd", "median", "lowest", "never fit [95 %]", "score of guessing [95 %]"]
    return markdown([*header, "last loss, mean (highest)", "sd of those that fit"], rows)


def majority_share(own: pd.DataFrame) -> tuple[bool, ...] | None:
    """Which runs score at most two points above the commonest class."""
    majority = own["majority"].iloc[0]
    return failed_runs(own["score"], float(majority)).failed if pd.notna(majority) else None


def _beside_table(arms: Arms) -> str:
    """Each arm beside Adam: paired by seed where a seed means the same, and as if it did not."""
    found = {arm: beside(own, arms[ADAM]) for arm, own in arms.items() if arm != ADAM}
    corrected = []
    for kind in ("paired", "welch"):
        p = {arm: getattr(gap, kind).p_two_sided for arm, gap in found.items() if getattr(gap, kind) is not None}
        corrected.append(dict(zip(p, holm(list(p.values())), strict=True)) if p else {})
    rows = []
    for arm, gap in found.items():
        row = [name_of(arm)]
        for kind, p in zip((gap.paired, gap.welch), corrected, strict=True):
            row += ["–", "–"] if kind is None else [interval(kind.difference, kind.low, kind.high), p_words(p[arm])]
        rows.append([*row, gap.ratio_words, "–" if gap.spread is None else p_words(gap.spread.p_value)])
    header = ["beside Adam", "paired [95 %]", "p", "not paired [95 %]", "p", "ratio of sd [95 %]", "p, uncorrected"]
    return markdown(header, rows)


def _ratio_said(cells: Mapping[str, Cells]) -> str:
    """The exact ratio at the steps that matter here."""
    values = np.array([bias_correction_ratio(step) for step in range(1, _SHOWN_STEPS + 1)])
    top = int(values.argmax())
    lengths = sorted({_setup(own, arm)["max_steps"] for own in cells.values() for arm in own})
    said = ", ".join(f"{bias_correction_ratio(n):.2f} at step {n}" for n in lengths)
    return (
        f"r(1) = {values[0]:.2f}, most at step {top + 1}, {values[top]:.2f}, then falling: {said} (where the trainings of this "
        f"page end), {values[-1]:.2f} at step {_SHOWN_STEPS}."
    )


def _best_said(model: str, arms: Arms) -> str:
    """How many runs of BERTAdam it takes to score as one of Adam, if the one that validates best is kept."""
    adam, bert = (best_curve(arms[arm]) for arm in (ADAM, BERT))
    enough = next((n for n, value in enumerate(bert, start=1) if value >= adam[0]), None)
    takes = f"the best of {enough} of BERTAdam" if enough else f"not even the best of {len(bert)} of BERTAdam"
    return (
        f"* **{model}**: one run of Adam is expected to score {points(adam[0])} %; {takes} "
        f"reaches that. Best of {len(bert)}: {points(adam[min(len(adam), len(bert)) - 1])} % "
        f"and {points(bert[-1])} %."
    )


def best_curve(own: pd.DataFrame) -> np.ndarray:
    """Expected test score of the run that validates best among 1, 2, ... of the runs."""
    return np.array([best_of_n(own["validation"], own["score"], n).mean for n in range(1, len(own) + 1)])


def _decay_said(cells: Mapping[str, Cells]) -> list[str]:
    """How much weight decay and the pull do at all, with these rates."""
    lines = []
    for model, own in cells.items():
        for arm in ("weight-decay", "pull"):
            if arm not in own:
                continue
            setup = _setup(own, arm)
            strength = setup["weight_decay"] or make_method("pull", **setup["methods"].get("pull", {})).strength
            plain = {cell["seed"]: cell["stages"][-1]["training"]["loss"] for cell in own[ADAM]}
            other = [cell["stages"][-1]["training"]["loss"] != plain.get(cell["seed"]) for cell in own[arm]]
            lines.append(
                f"* **{model}**, {name_of(arm)} of {strength:g}: a weight without a gradient goes {pulled_share(setup, strength):.2g}"
                f" of its way in the whole training; the training loss differs from that of Adam with {sum(other)} of "
                f"{len(other)} seeds."
            )
    return lines or ["Not measured."]


def _limits(models: Mapping[str, Arms]) -> str:
    few = {model: len(arms[ADAM]) for model, arms in models.items() if len(arms[ADAM]) < 10}
    if not few:
        return ""
    named = ", ".join(f"{model} {n}" for model, n in few.items())
    return f"With few seeds ({named}) only large effects can be told, and spreads hardly at all."


def _draw(models: Mapping[str, Arms], cells: Mapping[str, Cells], figures: Path) -> dict[str, str]:
    """Draw what there is to draw; for each place of the template its figure."""
    first = _setup(next(iter(cells.values())))
    rows = [part for model, arms in models.items() for part in _other_panels(model, arms, cells[model])]
    drawn: dict[str, tuple[str, list[Panel], dict[str, Any]]] = {
        "fig_ratio": ("r(t), and the learning rate times r(t)", _ratio_panels(first, cells), {}),
        "fig_optimizers": (
            "Accuracy by optimizer, a dot for each seed",
            [_score_panel(model, {arm: own for arm, own in arms.items() if arm in OPTIMIZERS}) for model, arms in models.items()],
            {"height": list_height(len(OPTIMIZERS))},
        ),
        "fig_losses": (
            "Training loss by optimizer, mean and range over the seeds",
            [_loss_panel(model, {arm: own for arm, own in cells[model].items() if arm in OPTIMIZERS}) for model in models],
            {},
        ),
        "fig_best": ("Expected accuracy of the best of n runs", [_best_panel(*each) for each in models.items()], {}),
        "fig_reinit": ("Accuracy, training loss and distance from the start by re-initialised blocks", rows, {"columns": 3}),
        "fig_steps": ("Accuracy by number of steps", [_steps_panel(model, cells[model], arms) for model, arms in models.items()
                      if any(arm.startswith("steps") for arm in arms)], {}),
        "fig_beside": ("Difference of each training from Adam", [_beside_panel(*each) for each in models.items()], {"height": 4.6}),
    }  # fmt: skip
    shown = {}
    for place, (words, panels, how) in drawn.items():
        file = figures / f"{place.removeprefix('fig_')}.png"
        shown[place] = f"![{words}](figures/{save_panels(file, panels, **how).name})" if panels else "Not measured."
    return shown


def _ratio_panels(setup: Mapping[str, Any], cells: Mapping[str, Cells]) -> list[Panel]:
    steps = np.arange(1, _SHOWN_STEPS + 1)
    ratio = np.array([bias_correction_ratio(int(step)) for step in steps])
    lengths = sorted({_setup(own, arm)["max_steps"] for own in cells.values() for arm in own})
    plain = curves(
        {"r(t)": (steps, ratio)}, title="Steps of BERTAdam over those of Adam", x_label="step t", y_label="r(t)"
    )

    def marked(axes: Axes) -> None:
        plain(axes)
        for n in lengths:
            axes.axvline(n, color="#8a8f98", linewidth=1, linestyle=(0, (2, 2)))
            axes.text(n, axes.get_ylim()[1], f" {n}", fontsize=7, va="top", color="#555b66")

    rates = scheduled_rates(setup)
    own = np.arange(1, len(rates) + 1)
    series = {
        name_of(ADAM): (own, rates),
        name_of(BERT): (own, rates * [bias_correction_ratio(int(step)) for step in own]),
        name_of(STEADY): (own, rates * mean_ratio(setup)),
    }
    title = f"Length of the steps, {setup['learning_rate']:g}"
    return [marked, curves(series, title=title, x_label="step t", y_label="learning rate × ratio")]


def _score_panel(model: str, arms: Arms) -> Panel:
    majority = arms[ADAM]["majority"].iloc[0]
    return scores(
        {name_of(arm): list(100 * own["score"]) for arm, own in arms.items()},
        title=model,
        x_label="test accuracy, %",
        chance=100 * float(majority) if pd.notna(majority) else None,
    )


def _loss_panel(model: str, cells: Cells) -> Panel:
    series = {}
    for arm, own in cells.items():
        logged = [cell["stages"][-1]["training"] for cell in own]
        series[name_of(arm)] = (logged[0]["step"], np.array([each["loss"] for each in logged], dtype=float))
    guessing = float(np.log(cells[ADAM][0]["stages"][-1]["n_classes"]))
    return curves(series, title=model, x_label="step", y_label="training loss, nats", chance=guessing)


def _best_panel(model: str, arms: Arms) -> Panel:
    found = {name_of(arm): 100 * best_curve(own) for arm, own in arms.items() if arm in (ADAM, BERT)}
    series = {name: (np.arange(1, len(values) + 1), values) for name, values in found.items()}
    return curves(series, title=model, x_label="runs to choose from", y_label="expected test accuracy, %", whole_x=True)


def _other_panels(model: str, arms: Arms, cells: Cells) -> list[Panel]:
    """Of a model with re-initialised blocks: accuracy, training loss, distances."""
    kept = [arm for arm in arms if arm == ADAM or arm.startswith("reinit")]
    if len(kept) < 2:
        return []
    far = {arm: table for arm, table in moved(cells).items() if arm in kept}
    series = {name_of(arm): (np.arange(1, table.shape[1] + 1), table.to_numpy()) for arm, table in far.items()}
    label = "distance from the start, of the norm"
    return [
        _score_panel(model, {arm: arms[arm] for arm in kept}),
        _loss_panel(model, {arm: cells[arm] for arm in kept}),
        curves(series, title=model, x_label="block", y_label=label, whole_x=True),
    ]


def _steps_panel(model: str, cells: Cells, arms: Arms) -> Panel:
    kept = [arm for arm in arms if arm == ADAM or arm.startswith("steps")]
    most = max(len(arms[arm]) for arm in kept)
    columns = [
        np.pad(100 * arms[arm]["score"].to_numpy(), (0, most - len(arms[arm])), constant_values=np.nan) for arm in kept
    ]
    steps = [_setup(cells, arm)["max_steps"] for arm in kept]
    return curves(
        {name_of(ADAM): (steps, np.column_stack(columns))}, title=model, x_label="steps", y_label="test accuracy, %"
    )


def _beside_panel(model: str, arms: Arms) -> Panel:
    found = {arm: beside(own, arms[ADAM]).mean for arm, own in arms.items() if arm != ADAM}
    rows = {
        name_of(arm): tuple(100 * x for x in (gap.difference, gap.low, gap.high)) for arm, gap in found.items() if gap
    }
    label = "accuracy, points above Adam"
    return differences(rows, title=model, x_label=label, margin=100 * MARGIN)


if __name__ == "__main__":
    study_command(__file__, render)()
