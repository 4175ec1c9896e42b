"""Few training examples: Adam with and without bias correction, re-initialised blocks, more steps, stabilisers."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parent))
from stability_claims import ADAM, BERT, MARGIN, OPTIMIZERS, STEADY, Arms, name_of, statements

from dynprobe.cli.study import study_command
from dynprobe.experiments.over_seeds import beside, share_words
from dynprobe.experiments.results import Results, cells_of
from dynprobe.experiments.stability import (
    NEAR_GUESSING,
    Cells,
    arms_of,
    as_guessing,
    best_curve,
    cells_by_arm,
    epochs_of,
    last_setup,
    mean_ratio,
    moved,
    over_seeds,
    pulled_share,
    scheduled_rates,
)
from dynprobe.experiments.statements import FAILS, HOLDS, OPEN, Statement, headlines, judge, listed, p_words
from dynprobe.experiments.tables import interval, markdown, points, versions_of
from dynprobe.finetune import bias_correction_ratio
from dynprobe.finetune import method as make_method
from dynprobe.metrics import holm
from dynprobe.report.panels import Panel, curves, differences, list_height, save_panels, scores

HEADLINES = (
    "Without bias correction (BERTAdam) the scores are lower than with Adam",
    "Without bias correction the scores vary more",
    "Without bias correction more runs never fit their training examples",
    "Adam with steps r(t) times as long scores as BERTAdam does",
    "With 1 block re-initialised the scores are higher",
    "With 4 times the steps the scores are higher",
)
_SHOWN_STEPS = 1000  # of r(t)
_WEAK = 0.01  # of their way: weights that are pulled no further than this are hardly pulled


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    models = arms_of(results)
    cells = {model: cells_by_arm(results, model) for model in models}
    judged = _judged(results)
    return {
        "trainings": _trainings(models, cells),
        "summary": "\n".join(_summary(model, arms) for model, arms in models.items()),
        "holds": listed(judged, HOLDS),
        "fails": listed(judged, FAILS),
        "open": listed(judged, OPEN),
        "n_claims": str(max(map(len, judged.values()))),
        "margin": f"{100 * MARGIN:g}",
        "near": f"{NEAR_GUESSING:g}",
        "ratio": _ratio_said(cells),
        "best": "\n".join(_best_said(model, arms) for model, arms in models.items() if BERT in arms),
        "scores": "\n\n".join(f"**{model}**\n\n{_score_table(arms)}" for model, arms in models.items()),
        "beside": "\n\n".join(f"**{model}**\n\n{_beside_table(arms)}" for model, arms in models.items()),
        "decay": "\n".join(_decay_said(cells)),
        "limits": " ".join(filter(None, [_limits(models), *_short_said(models)])),
        "versions": versions_of(results),
        "n_cells": str(len(cells_of(results))),
        **_draw(models, cells, figures),
    }


def summary(results: Results) -> list[tuple[str, str, str]]:
    """The headline claims: claim, what was measured, verdicts."""
    return list(headlines(_judged(results), HEADLINES))


def _judged(results: Results) -> dict[str, list[Statement]]:
    """The statements about each model, corrected together."""
    return {
        model: judge(statements(arms, moved(cells_by_arm(results, model)))) for model, arms in arms_of(results).items()
    }


def _trainings(models: Mapping[str, Arms], cells: Mapping[str, Cells]) -> str:
    rows = []
    for model, arms in models.items():
        setup, stage = last_setup(cells[model]), cells[model][ADAM][0]["stages"][-1]
        rows.append(
            [
                model, setup["task"], str(stage["n_classes"]), str(setup["train_examples"] or "all"), str(stage["n_test"]),
                str(setup["max_steps"]), str(setup["batch_size"]), epochs_of(setup), f"{setup['learning_rate']:g}",
                f"{mean_ratio(setup):.2f}", str(len(arms[ADAM])),
            ]
        )  # fmt: skip
    header = [
        "model",
        "task",
        "classes",
        "training examples",
        "test examples",
        "steps",
        "batch",
        "epochs",
        "learning rate",
    ]
    return markdown([*header, "mean of r(t)", "seeds, up to"], rows)


def _summary(model: str, arms: Arms) -> str:
    said = []
    for arm, own in ((arm, own) for arm, own in arms.items() if arm in (ADAM, BERT)):
        spread = f"{points(own['score'].mean())} ± {points(own['score'].std())} %"
        said.append(f"{name_of(arm)} {spread}, {share_words(~own['fitted'])} never fit")
    return f"* **{model}**: {'; '.join(said)}."


def _score_table(arms: Arms) -> str:
    rows = []
    for arm, own in arms.items():
        values, fitted = own["score"], own[own["fitted"]]["score"]
        share = as_guessing(own)
        rows.append(
            [
                name_of(arm), str(len(own)), points(values.mean()), points(values.std()), points(values.median()),
                points(values.min()), share_words(~own["fitted"]), "–" if share is None else share_words(share),
                f"{own['final_loss'].mean():.2f} ({own['final_loss'].max():.2f})", points(fitted.std()),
            ]
        )  # fmt: skip
    header = ["training", "seeds", "mean", "sd", "median", "lowest", "never fit [95 %]", "score of guessing [95 %]"]
    return markdown([*header, "last loss, mean (highest)", "sd of those that fit"], rows)


def _beside_table(arms: Arms) -> str:
    """Each arm beside Adam: paired by seed where a seed means the same, and as if it did not."""
    adam = over_seeds(arms[ADAM])
    found = {arm: beside(over_seeds(own), adam) for arm, own in arms.items() if arm != ADAM}
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
    lengths = sorted({last_setup(own, arm)["max_steps"] for own in cells.values() for arm in own})
    said = ", ".join(f"{bias_correction_ratio(n):.2f} at step {n}" for n in lengths)
    return (
        f"r(1) = {values[0]:.2f}, most at step {top + 1}, {values[top]:.2f}, then falling: {said} (where the trainings of this "
        f"page end), {values[-1]:.2f} at step {_SHOWN_STEPS}."
    )


def _best_said(model: str, arms: Arms) -> str:
    """How many runs of BERTAdam it takes to score as one of Adam, if the one that validates best is kept."""
    adam, bert = (best_curve(arms[arm]) for arm in (ADAM, BERT))
    enough = next((n for n, value in enumerate(bert, start=1) if value >= adam[0]), None)
    takes = (
        f"the best of {enough}"
        if enough and enough > 1
        else "also one"
        if enough
        else f"not even the best of {len(bert)}"
    )
    return (
        f"* **{model}**: one run of Adam is expected to score {points(adam[0])} %; {takes} of BERTAdam "
        f"reaches that. Best of {len(bert)}: {points(adam[min(len(adam), len(bert)) - 1])} % "
        f"and {points(bert[-1])} %, chosen from {len(adam)} and {len(bert)}."
    )


def _decay_said(cells: Mapping[str, Cells]) -> list[str]:
    """How much weight decay and the pull do at all, with these rates."""
    lines = []
    for model, own in cells.items():
        for arm in ("weight-decay", "pull"):
            if arm not in own:
                continue
            setup = last_setup(own, arm)
            strength = setup["weight_decay"] or make_method("pull", **setup["methods"].get("pull", {})).strength
            plain = {cell["seed"]: cell["stages"][-1]["training"]["loss"] for cell in own[ADAM]}
            other = [cell["stages"][-1]["training"]["loss"] != plain.get(cell["seed"]) for cell in own[arm]]
            share = pulled_share(setup, strength)
            weak = ". So little can hardly matter: of the method itself it says nothing" if share < _WEAK else ""
            lines.append(
                f"* **{model}**, {name_of(arm)} of {strength:g}: a weight without a gradient goes {share:.2g} of its way in "
                f"the whole training; the training loss differs from that of Adam with {sum(other)} of {len(other)} seeds"
                f"{weak}."
            )
    return lines or ["Not measured."]


def _limits(models: Mapping[str, Arms]) -> str:
    few = {model: len(arms[ADAM]) for model, arms in models.items() if len(arms[ADAM]) < 10}
    if not few:
        return ""
    named = ", ".join(f"{model} {n}" for model, n in few.items())
    return f"With few seeds ({named}) only large effects can be told, and spreads hardly at all."


def _short_said(models: Mapping[str, Arms]) -> list[str]:
    """Whether more steps help because there were too few to fit the training examples."""
    lines = []
    for model, arms in models.items():
        longer = next((arm for arm in arms if arm.startswith("steps")), None)
        if longer is not None:
            losses = [arms[arm]["final_loss"].mean() for arm in (ADAM, longer)]
            lines.append(
                f"More steps help {model} where it has not yet fitted its training examples: its last training loss is "
                f"{losses[0]:.2f}, and {losses[1]:.2f} with {name_of(longer)}."
            )
    return lines


def _draw(models: Mapping[str, Arms], cells: Mapping[str, Cells], figures: Path) -> dict[str, str]:
    """Draw what there is to draw; for each place of the template its figure."""
    compared = {model: {arm: own for arm, own in arms.items() if arm in OPTIMIZERS} for model, arms in models.items()}
    with_steps = {model: arms for model, arms in models.items() if any(arm.startswith("steps") for arm in arms)}
    many = {model: arms for model, arms in models.items() if len(arms) > 2} or models
    reinit = [panel for model, arms in models.items() for panel in _reinit_panels(model, arms, cells[model])]
    tall, taller = (list_height(max(len(arms) for arms in some.values())) for some in (compared, many))
    drawn: dict[str, tuple[str, float, list[Panel]]] = {
        "fig_ratio": ("r(t), and the learning rate times r(t)", 3.2, _ratio_panels(cells)),
        "fig_optimizers": ("Accuracy", tall, [_score_panel(*each) for each in compared.items()]),
        "fig_losses": ("Training loss", 3.2, [_loss_panel(*each, cells[each[0]]) for each in compared.items()]),
        "fig_best": ("Expected accuracy of the best of n runs", 3.2, [_best_panel(*each) for each in models.items()]),
        "fig_reinit": ("Accuracy, training loss and distance from the start", 3.2, reinit),
        "fig_steps": ("Accuracy", 3.2, [_steps_panel(*each, cells[each[0]]) for each in with_steps.items()]),
        "fig_beside": ("Difference from Adam", taller, [_beside_panel(*each) for each in many.items()]),
    }
    shown = {}
    for place, (words, height, panels) in drawn.items():
        file = figures / f"{place.removeprefix('fig_')}.png"
        shown[place] = f"![{words}](figures/{file.name})" if panels else "Not measured."
        if panels:
            save_panels(file, panels, columns=3, height=height)
    return shown


def _ratio_panels(cells: Mapping[str, Cells]) -> list[Panel]:
    setup = last_setup(next(iter(cells.values())))
    steps = np.arange(1, _SHOWN_STEPS + 1)
    ratio = np.array([bias_correction_ratio(int(step)) for step in steps])
    lengths = sorted({last_setup(own, arm)["max_steps"] for own in cells.values() for arm in own})
    plain = curves({"r(t)": (steps, ratio)}, title="Steps of BERTAdam over Adam's", x_label="step t", y_label="r(t)")

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
    title = f"Length of the steps at a rate of {setup['learning_rate']:g}"
    return [marked, curves(series, title=title, x_label="step t", y_label="learning rate × ratio")]


def _score_panel(model: str, arms: Arms) -> Panel:
    majority = arms[ADAM]["majority"].iloc[0]
    return scores(
        {name_of(arm): list(100 * own["score"]) for arm, own in arms.items()},
        title=model,
        x_label="test accuracy, %",
        chance=100 * float(majority) if pd.notna(majority) else None,
    )


def _loss_panel(model: str, arms: Arms, cells: Cells) -> Panel:
    series = {}
    for arm in arms:
        logged = [cell["stages"][-1]["training"] for cell in cells[arm]]
        series[name_of(arm)] = (logged[0]["step"], np.array([each["loss"] for each in logged], dtype=float))
    guessing = float(np.log(cells[ADAM][0]["stages"][-1]["n_classes"]))
    return curves(series, title=model, x_label="step", y_label="training loss, nats", chance=guessing)


def _best_panel(model: str, arms: Arms) -> Panel:
    found = {name_of(arm): 100 * best_curve(own) for arm, own in arms.items() if arm in (ADAM, BERT)}
    series = {name: (np.arange(1, len(values) + 1), values) for name, values in found.items()}
    return curves(series, title=model, x_label="runs to choose from", y_label="expected test accuracy, %", whole_x=True)


def _reinit_panels(model: str, arms: Arms, cells: Cells) -> list[Panel]:
    """Of a model with re-initialised blocks: accuracy, training loss, distances."""
    kept = [arm for arm in arms if arm == ADAM or arm.startswith("reinit")]
    if len(kept) < 2:
        return []
    far = {arm: table for arm, table in moved(cells).items() if arm in kept}
    series = {name_of(arm): (np.arange(1, table.shape[1] + 1), table.to_numpy()) for arm, table in far.items()}
    label = "L2 distance from the start"
    return [
        _score_panel(model, {arm: arms[arm] for arm in kept}),
        _loss_panel(model, {arm: arms[arm] for arm in kept}, cells),
        curves(series, title=model, x_label="block", y_label=label, whole_x=True),
    ]


def _steps_panel(model: str, arms: Arms, cells: Cells) -> Panel:
    kept = [arm for arm in arms if arm == ADAM or arm.startswith("steps")]
    table = pd.concat([arms[arm].set_index("seed")["score"] for arm in kept], axis=1, join="inner")
    steps = [last_setup(cells, arm)["max_steps"] for arm in kept]
    return curves(
        {name_of(ADAM): (steps, 100 * table.to_numpy())}, title=model, x_label="steps", y_label="test accuracy, %"
    )


def _beside_panel(model: str, arms: Arms) -> Panel:
    adam = over_seeds(arms[ADAM])
    found = {arm: beside(over_seeds(own), adam).mean for arm, own in arms.items() if arm != ADAM}
    ends = {arm: (gap.difference, gap.low, gap.high) for arm, gap in found.items() if gap}
    rows = {name_of(arm): (100 * middle, 100 * low, 100 * high) for arm, (middle, low, high) in ends.items()}
    label = "accuracy, points above Adam"
    return differences(rows, title=model, x_label=label, margin=100 * MARGIN)


if __name__ == "__main__":
    study_command(__file__, render)()
