"""What fine-tuning changes in each layer, when, and how far seeds and data sets differ in it."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dynprobe.cli.study import study_command
from dynprobe.errors import DynprobeError
from dynprobe.experiments.layer_distances import (
    ATTENTION,
    HIDDEN,
    HIDDEN_CKA,
    at_the_end,
    distance_frame,
    floors_of,
    over_training,
    profile,
)
from dynprobe.experiments.layer_questions import (
    Answer,
    Statistic,
    Trend,
    answer,
    arms_against_seeds,
    last_against_others,
    later_against_first,
    layer_trend,
    lower_than_attention,
    start_against_seeds,
)
from dynprobe.experiments.results import Results, cells_of, pairs_of
from dynprobe.experiments.statements import FAILS, HOLDS, OPEN, Statement, headlines, judge, listed
from dynprobe.experiments.tables import markdown, pair_frame, points, score_frame, versions_of
from dynprobe.report.panels import Panel, curves, save_panels

# What is claimed, what the number is, and how it is found for each data set.
QUESTIONS: dict[str, tuple[str, Statistic]] = {
    "Fine-tuning changes attention most in the last layers": (
        "distance from the start in the last third of the layers, as a multiple of that in the others",
        partial(last_against_others, measure=ATTENTION),
    ),
    "Fine-tuning changes hidden states in the intermediate and last layers": (
        "distance from the start there, as a multiple of that in the first third",
        partial(later_against_first, measure=HIDDEN),
    ),
    "Hidden states change in lower layers than attention": (
        "centre of change of attention minus that of hidden states, in layers",
        lower_than_attention,
    ),
    "Seeds differ less than fine-tuned from pretrained, in attention": (
        "distance from the start, as a multiple of that between two seeds",
        partial(start_against_seeds, measure=ATTENTION),
    ),
    "Seeds differ less than fine-tuned from pretrained, in hidden states": (
        "distance from the start, as a multiple of that between two seeds",
        partial(start_against_seeds, measure=HIDDEN),
    ),
    "Data sets differ more than seeds, in attention": (
        "distance between two data sets, as a multiple of that between two seeds",
        partial(arms_against_seeds, measure=ATTENTION),
    ),
    "Data sets differ more than seeds, in hidden states": (
        "distance between two data sets, as a multiple of that between two seeds",
        partial(arms_against_seeds, measure=HIDDEN),
    ),
}
TRENDS = {
    "The change of attention grows from layer to layer": ATTENTION,
    "The change of hidden states grows from layer to layer": HIDDEN,
}
HEADLINES = (
    "Fine-tuning changes attention most in the last layers",
    "Fine-tuning changes hidden states in the intermediate and last layers",
    "Seeds differ less than fine-tuned from pretrained, in hidden states",
)
_IN_LAYERS = "Hidden states change in lower layers than attention"


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    if not pairs_of(results):
        raise DynprobeError("the results must hold comparisons of trainings; got none. Ask for `pairs` under `measure`")
    frame = distance_frame(results)
    models = list(dict.fromkeys(result["model"] for result in results))
    found = {model: answers(frame[frame["model"] == model]) for model in models}
    judged = {model: judge(statements(own)) for model, own in found.items()}
    pair = pairs_of(results)[0]
    draw_layers(frame, figures / "layers.png")
    draw_training(frame, figures / "training.png")
    return {
        "probe": f"{pair['n_examples']} examples of `{pair['probe_task']}`",
        "sample": sample_words(results),
        "trainings": training_table(results),
        "holds": listed(judged, HOLDS),
        "fails": listed(judged, FAILS),
        "open": listed(judged, OPEN),
        "n_claims": " or ".join(dict.fromkeys(str(len(own)) for own in judged.values())),
        "by_task": by_task_tables(found),
        "layers": "\n\n".join(layer_tables(results, frame, model) for model in models),
        "course": course(frame),
        "seeds": seed_words(frame),
        "versions": versions_of(cells_of(results)),
        "n_cells": str(len(cells_of(results))),
        "n_pairs": str(len(pairs_of(results))),
    }


def summary(results: Results) -> list[tuple[str, str, str]]:
    """The headline claims: claim, what was measured, verdicts."""
    frame = distance_frame(results)
    models = dict.fromkeys(result["model"] for result in results)
    judged = {model: judge(statements(answers(frame[frame["model"] == model]))) for model in models}
    return list(headlines(judged, HEADLINES))


def answers(frame: pd.DataFrame) -> dict[str, Answer | Trend]:
    """What was measured of every claim about one model; p is not corrected."""
    ends = at_the_end(frame)
    found: dict[str, Answer | Trend] = {claim: answer(statistic, ends) for claim, (_, statistic) in QUESTIONS.items()}
    of_two = profile(ends, "start", ATTENTION).shape[1] < 3  # where a trend is no more than the first claim
    return found | {claim: layer_trend(ends, measure) for claim, measure in TRENDS.items() if not of_two}


def statements(found: Mapping[str, Answer | Trend]) -> list[Statement]:
    """The answers as statements, to be judged together."""
    return [_statement(claim, told) for claim, told in found.items()]


def _statement(claim: str, told: Answer | Trend) -> Statement:
    if not math.isfinite(told.value):
        return Statement(text=claim, shown="not measured")
    shown, brief = _trend_words(told) if isinstance(told, Trend) else _answer_words(claim, told)
    more = "" if math.isfinite(told.p) else ", too few seeds for a test"
    return Statement(text=claim, shown=f"{shown}{more}", brief=brief, p=told.p, as_claimed=told.value > 0)


def _trend_words(told: Trend) -> tuple[str, str]:
    """All figures of a trend, and the one for a summary."""
    rho, low, high = (f"{value:.2f}".replace("-0.00", "0.00") for value in (told.value, told.lowest, told.highest))
    return f"Spearman's ρ of layer and distance {rho}, in single trainings from {low} to {high}", f"ρ = {rho}"


def _answer_words(claim: str, told: Answer) -> tuple[str, str]:
    """All figures of an answer, and those for a summary."""
    value, *ends = (_shown(claim, number) for number in (told.value, told.low, told.high))
    figure = f"{value} [{', '.join(ends)}]" if math.isfinite(told.low) else value
    above = sum(number > 0 for number in told.by_arm.values())
    kind = "pairs of data sets" if any(" and " in arm for arm in told.by_arm) else "data sets"
    said = f"as claimed in {above} of {len(told.by_arm)} {kind}"
    return f"{QUESTIONS[claim][0]}: {figure}; {said}", f"{figure}, {said}"


def by_task_tables(found: Mapping[str, Mapping[str, Answer | Trend]]) -> str:
    """The number of each claim for each data set, or pair of them."""
    parts = []
    for model, answers in found.items():
        for pairs in (False, True):
            own = {
                claim: told.by_arm
                for claim, told in answers.items()
                if isinstance(told, Answer) and any(" and " in arm for arm in told.by_arm) == pairs and told.by_arm
            }
            arms = list(dict.fromkeys(arm for by_arm in own.values() for arm in by_arm))
            rows = [[claim, *(_shown(claim, by_arm.get(arm)) for arm in arms)] for claim, by_arm in own.items()]
            if rows:
                parts.append(f"**{model}**\n\n" + markdown(["claim", *arms], rows))
    return "\n\n".join(parts)


def _shown(claim: str, value: float | None) -> str:
    """A ratio as a multiple; the difference of centres in layers."""
    if value is None or value != value:
        return "–"
    return f"{value:+.2f}" if claim == _IN_LAYERS else f"{math.exp(value):.2f}×"


def training_table(results: Results) -> str:
    """What the trainings came to: distances of one that learned nothing say little."""
    rows = []
    for (model, arm), part in score_frame(results).groupby(["model", "arm"], sort=False):
        stages = [r["stages"][-1] for r in cells_of(results) if (r["model"], r["arm"]) == (model, arm)]
        setup = stages[0]["setup"]
        how = [str(setup[name]) for name in ("train_examples", "max_steps", "batch_size")]
        mean, guessing = points(float(part["score"].mean())), points(part["majority"].iloc[0])
        rows.append([f"{arm} ({model})", str(len(part)), *how, f"{setup['learning_rate']:g}", mean, guessing])
    header = ["data set", "seeds", "training examples", "steps", "batch", "learning rate", "accuracy, %", "guessing, %"]
    return markdown(header, rows)


def sample_words(results: Results) -> str:
    """Number of tokens and directions of each model, and what could not be measured."""
    frame = pair_frame(results)
    parts = []
    for model, own in frame.groupby("model", sort=False):
        states = own[(own["metric"] == "svcca_similarity") & (own["layer"] > 0)]
        n, kept = int(states["n"].min()), states["n_kept"].dropna()
        few = int((states["status"] == "insufficient-sample").sum())
        ratio = f", {n / kept.max():.0f} tokens per direction or more" if len(kept) else ""
        n_attention = int(own.loc[own["metric"] == "attention_js_divergence", "n"].min())
        chance = states["chance"].dropna()
        level = f"; unrelated rows have a similarity of {chance.max():.2f} at most" if len(chance) else ""
        missing = f"; **{few} of {len(states)} values are missing, of too few tokens**" if few else ""
        parts.append(
            f"* {model}: hidden states of {n} tokens{ratio}{level}{missing}; attention of {n_attention} examples."
        )
    return "\n".join(parts)


def layer_tables(results: Results, frame: pd.DataFrame, model: str) -> str:
    """Distances of one model layer by layer, beside the floors."""
    ends, floors = at_the_end(frame[frame["model"] == model]), floors_of(results, model)
    parts = []
    for measure in (ATTENTION, HIDDEN):
        columns = {
            "from the start": profile(ends, "start", measure).mean(),
            "between seeds": profile(ends, "seeds", measure).mean(),
            "between data sets": profile(ends, "arms", measure).mean(),
            "± examples": profile(ends, "start", measure, values="examples").mean(),
        }
        if measure == HIDDEN:
            columns["from the start, CKA"] = profile(ends, "start", HIDDEN_CKA).mean()
        rows = [
            [
                str(layer),
                *(_number(column.get(layer)) for column in columns.values()),
                _number(floors[measure].get(int(layer))),
            ]
            for layer in columns["from the start"].index
        ]
        unit = "JS divergence, nats" if measure == ATTENTION else "1 − SVCCA similarity"
        parts.append(f"**{model}, {measure}** ({unit})\n\n" + markdown(["layer", *columns, "storage"], rows))
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2g}"


def course(frame: pd.DataFrame) -> str:
    """How far on the way each measure is at each snapshot, and in how many trainings the way to the end only shortens."""
    parts = []
    for model, own in frame.groupby("model", sort=False):
        rows, steps = [], []
        for measure in (ATTENTION, HIDDEN):
            for pair, place in (("start", -1), ("end", 0)):
                steps, values = _over_layers(own, pair, measure)
                share = values / values[:, place : place + 1 or None]
                falls = np.diff(values, axis=1) * (1 if pair == "start" else -1)
                rows.append(
                    [
                        f"{measure}, from the {pair}",
                        *(f"{100 * value:.0f}" for value in np.nanmean(share, axis=0)),
                        f"{int((falls >= 0).all(axis=1).sum())} of {len(values)}",
                    ]
                )
        header = ["distance, % of that between start and end", *(f"step {step}" for step in steps), "one way only"]
        parts.append(f"**{model}**\n\n" + markdown(header, rows))
    return "\n\n".join(parts)


def _over_layers(frame: pd.DataFrame, pair: str, measure: str) -> tuple[list[int], np.ndarray]:
    """Steps and the mean over the layers of each training."""
    layers = list(over_training(frame, pair, measure).values())
    return layers[0][0], np.mean([values for _, values in layers], axis=0)


def seed_words(frame: pd.DataFrame) -> str:
    """How many seeds stand behind the intervals."""
    seeds = {str(model): int(part["seed_a"].nunique()) for model, part in frame.groupby("model", sort=False)}
    return ", ".join(f"{n} ({model})" for model, n in seeds.items())


def draw_layers(frame: pd.DataFrame, path: Path) -> None:
    """Distance from the start by layer for each data set, between seeds, between data sets."""
    panels = []
    for model, own in frame.groupby("model", sort=False):
        ends = at_the_end(own)
        for measure, label in ((ATTENTION, "JS divergence, nats"), (HIDDEN, "1 − SVCCA similarity")):
            series = {
                str(arm): _of_seeds(ends[(ends["pair"] == "start") & (ends["arm_a"] == arm)], measure)
                for arm in ends["arm_a"].unique()
            }
            for name, pair in (("between seeds", "seeds"), ("between data sets", "arms")):
                table = profile(ends, pair, measure)
                if len(table):
                    series[name] = (list(table.columns), table.mean().to_numpy()[None])
            title = f"{model}: {measure}"
            panels.append(curves(series, title=title, x_label="layer", y_label=label, whole_x=True))
    save_panels(path, panels)


def _of_seeds(frame: pd.DataFrame, measure: str) -> tuple[list[int], np.ndarray]:
    rows = frame[(frame["measure"] == measure) & (frame["layer"] > 0)]
    table = rows.pivot_table(index="seed_a", columns="layer", values="distance")
    return [int(layer) for layer in table.columns], table.to_numpy()


def draw_training(frame: pd.DataFrame, path: Path) -> None:
    """Distance from the start and from the end over the training, layer by layer; mean over all trainings."""
    panels: list[Panel] = []
    for model, own in frame.groupby("model", sort=False):
        for measure, label in ((ATTENTION, "JS divergence, nats"), (HIDDEN, "1 − SVCCA similarity")):
            for pair in ("start", "end"):
                series = {
                    f"layer {layer}": (steps, np.nanmean(values, axis=0)[None])
                    for layer, (steps, values) in over_training(own, pair, measure).items()
                }
                title = f"{model}: {measure}, from the {pair}"
                panels.append(curves(series, title=title, x_label="optimizer step", y_label=label, whole_x=True))
    save_panels(path, panels)


if __name__ == "__main__":
    study_command(__file__, render)()
