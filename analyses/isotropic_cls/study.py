"""Isotropy of the vector that is classified: without a norm, with batch norm, and with IsoBN."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))
from isotropy_claims import BATCH, ISO, MARGIN, NONE, RELEASED, claims, steps_to_best

from dynprobe.cli.study import study_command
from dynprobe.experiments.isotropy_readings import STD_QUANTILES
from dynprobe.experiments.isotropy_tables import (
    GIVEN,
    RETURNED,
    change_frame,
    cold_starts,
    correlation_maps,
    isotropy_frame,
    layer_frame,
    std_quantiles,
)
from dynprobe.experiments.results import Results, cells_of
from dynprobe.experiments.statements import FAILS, HOLDS, NOTHING, OPEN, Statement, headlines, judge, listed, p_words
from dynprobe.experiments.tables import arm_table, interval, markdown, points, score_frame, versions_of
from dynprobe.metrics import isotropic_reference
from dynprobe.report.panel_maps import matrix
from dynprobe.report.panels import Panel, curves, save_panels, scores

HEADLINES = (
    "EV₁ falls from before the IsoBN layer to after it",
    "Accuracy is higher with IsoBN than without a norm",
    "The cold start of the released code costs accuracy",
)
_SHOWN_STEPS = (1, 2, 5, 10, 20, 50, 100)


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    frame, table = isotropy_frame(results), arm_table(score_frame(results), reference=NONE, margin=MARGIN)
    models = _models(results)
    judged = _judged(results, models)
    _draw(results, frame, models, figures)
    said = _exact(results)
    return {
        "trainings": _trainings(results, models),
        "start": _start(frame, models),
        "holds": _with_exact(said[HOLDS], listed(judged, HOLDS)),
        "fails": _with_exact(said[FAILS], listed(judged, FAILS)),
        "open": listed(judged, OPEN),
        "n_claims": str(max(map(len, judged.values()))),
        "margin": f"{100 * MARGIN:g}",
        "isotropy": "\n\n".join(f"**{model}**\n\n{_isotropy_table(frame, model)}" for model in models),
        "scores": "\n\n".join(f"**{model}**\n\n{_score_table(results, table, model)}" for model in models),
        "cold": "\n\n".join(f"**{model}**\n\n{_cold_table(results, model)}" for model in models),
        "cold_said": _cold_said(results, models),
        "limits": _limits(results, frame, models),
        "versions": versions_of(results),
        "n_cells": str(len(cells_of(results))),
    }


def summary(results: Results) -> list[tuple[str, str, str]]:
    """The headline claims: claim, what was measured, verdicts."""
    return list(headlines(_judged(results, _models(results)), HEADLINES))


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(result["model"] for result in cells_of(results)))


def _judged(results: Results, models: list[str]) -> dict[str, list[Statement]]:
    """The claims about each model, corrected together."""
    return {model: judge(claims(results, model)) for model in models}


def _with_exact(said: list[str], others: str) -> str:
    """What is a matter of arithmetic before what is one of seeds."""
    return "\n".join([*(f"* {line}" for line in said), *([others] if others != NOTHING or not said else [])])


def _exact(results: Results) -> dict[str, list[str]]:
    """Whether each norm leaves the correlations as they are: no question of seeds, but of arithmetic."""
    found: dict[str, list[str]] = {HOLDS: [], FAILS: []}
    changes = change_frame(results)
    for (model, arm), part in changes[changes["arm"].isin((ISO, BATCH))].groupby(["model", "arm"], sort=False):
        largest, share = part["largest"].max(), part["of_rounding"].max()
        word = HOLDS if share <= 1 else FAILS
        name = "The IsoBN layer" if arm == ISO else "Batch norm"
        found[word].append(
            f"**{model}**: {name} leaves every correlation between dimensions as it is: of all pairs of {len(part)} trained "
            f"models none moves by more than {largest:.1e}, at most {100 * share:.0f} % of what rounding of the stored vectors "
            "can do to that pair."
        )
    return found


def _trainings(results: Results, models: list[str]) -> str:
    rows = []
    for model in models:
        own = [result for result in cells_of(results) if result["model"] == model]
        stage = own[0]["stages"][0]
        setup, vectors = stage["setup"], isotropy_frame(own)
        rows.append(
            [
                model, setup["task"], str(stage["n_classes"]), str(setup["train_examples"]), str(stage["n_test"]),
                str(setup["max_steps"]), str(setup["batch_size"]), f"{setup['learning_rate']:g}",
                str(len({result["seed"] for result in own})), str(vectors["d"].iloc[0]), str(vectors["n"].iloc[0]),
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
        "learning rate",
        "seeds",
    ]
    return markdown([*header, "dimensions", "vectors measured"], rows)


def _start(frame: pd.DataFrame, models: list[str]) -> str:
    """How far from isotropic the vectors are before any training."""
    lines = []
    for model in models:
        part = frame[(frame["model"] == model) & ~frame["tuned"] & (frame["vector"] == GIVEN) & (frame["arm"] == NONE)]
        even = isotropic_reference(int(part["n"].iloc[0]), int(part["d"].iloc[0]))
        lines.append(
            f"* **{model}**: EV₁ {points(part['share_1'].mean())} %, mean |ρ| {part['correlation'].mean():.3f}, IsoScore "
            f"{part['isoscore'].mean():.3f}; as many isotropic vectors of this width would have {points(even.first_share)} %, "
            f"{even.mean_correlation:.3f} and {even.isoscore:.3f}."
        )
    return "\n".join(lines)


def _views(frame: pd.DataFrame, model: str) -> dict[str, pd.DataFrame]:
    """Rows of a model by what they are of, in the order in which they are read."""
    own = frame[frame["model"] == model]
    after, given = own[own["tuned"]], own["vector"] == GIVEN
    views = {"before fine-tuning": own[~own["tuned"] & given & (own["arm"] == NONE)]}
    views["no norm"] = after[(after["arm"] == NONE) & (after["vector"] == RETURNED)]
    for arm, name in ((BATCH, "batch norm"), (ISO, "IsoBN")):
        part = after[after["arm"] == arm]
        views[f"{name}, before the layer"] = part[part["vector"] == GIVEN]
        views[f"{name}, after it"] = part[part["vector"] == RETURNED]
    return {name: part for name, part in views.items() if len(part)}


def _isotropy_table(frame: pd.DataFrame, model: str) -> str:
    views, rows = _views(frame, model), []
    for name, part in views.items():
        shares = [
            " / ".join(points(part[f"{kind}_{rank}"].mean()) for rank in (1, 2, 3)) for kind in ("share", "uncentred")
        ]
        std = np.array([list(values) for values in part["std"]])
        low, middle, high = (std[:, STD_QUANTILES.index(level)] for level in (0.05, 0.5, 0.95))
        spread = f"{(high / low).mean():.2f}" if (low > 0).all() else "–"
        rows.append(
            [
                name, *shares, f"{part['correlation'].mean():.3f}", f"{middle.mean():.3f}", spread,
                f"{part['isoscore'].mean():.3f}",
            ]
        )  # fmt: skip
    size = next(iter(views.values()))
    even = isotropic_reference(int(size["n"].iloc[0]), int(size["d"].iloc[0]))
    rows.append(
        [
            "isotropic vectors",
            points(even.first_share),
            "",
            f"{even.mean_correlation:.3f}",
            "",
            "",
            f"{even.isoscore:.3f}",
        ]
    )
    header = [
        "vector",
        "EV₁ / EV₂ / EV₃, %",
        "mean left in",
        "mean abs. ρ",
        "median std",
        "std, 95 % / 5 %",
        "IsoScore",
    ]
    return markdown(header, rows)


def _score_table(results: Results, table: pd.DataFrame, model: str) -> str:
    rows = []
    own = [result for result in cells_of(results) if result["model"] == model]
    for row in table[table["model"] == model].to_dict("records"):
        steps = [steps_to_best(result["stages"][0]) for result in own if result["arm"] == row["arm"]]
        p = row.get("p", float("nan"))
        chance = "–" if p != p else p_words(p)
        rows.append(
            [
                row["arm"], str(row["n"]), points(row["mean"]), points(row.get("sd")),
                interval(row.get("difference"), row.get("low"), row.get("high")), chance,
                row["verdict"] if isinstance(row.get("verdict"), str) else "–", f"{np.mean(steps):.0f}",
            ]
        )  # fmt: skip
    return markdown(["arm", "seeds", "mean", "sd", "difference [95 %]", "p", "verdict", "steps to best"], rows)


def _cold_table(results: Results, model: str) -> str:
    found, rows = cold_starts(results, model), []
    if not found:
        return "Not measured."
    mean = {name: values.mean(axis=0) for name, values in found.items()}
    for step in (step for step in _SHOWN_STEPS if step <= len(mean["saturated"])):
        at = {name: float(values[step - 1]) for name, values in mean.items()}
        rows.append(
            [
                str(step), points(at["saturated_released"]), points(at["saturated"]), f"{at['group_share_released']:.3f}",
                f"{at['group_share']:.3f}", points(at["factor_change"]),
            ]
        )  # fmt: skip
    header = [
        "batches seen",
        "saturated, released, %",
        "saturated, as defined, %",
        "mean γ, released",
        "mean γ, as defined",
    ]
    return markdown([*header, "change of the factors, %"], rows)


def _cold_said(results: Results, models: list[str]) -> str:
    lines = []
    for model in models:
        found = cold_starts(results, model)
        if found:
            share = found["saturated_released"].mean(axis=0)
            below = np.flatnonzero(share < 0.01)
            until = f"it falls below 1 % with batch {below[0] + 1}" if len(below) else "it never falls below 1 %"
            lines.append(
                f"* **{model}**: {points(share[0])} % of the correlations are saturated after the first batch; {until}."
            )
    return "\n".join(lines)


def _limits(results: Results, frame: pd.DataFrame, models: list[str]) -> str:
    """What few seeds and few vectors leave open."""
    lines = []
    for model in models:
        seeds = {result["seed"] for result in cells_of(results) if result["model"] == model}
        if len(seeds) < 5:
            lines.append(f"{model} has {len(seeds)} seeds, with which only large effects can be told.")
        part = frame[frame["model"] == model]
        n, d = int(part["n"].iloc[0]), int(part["d"].iloc[0])
        if n < 2 * d:
            lines.append(
                f"{n} vectors of {d} dimensions are few ({model}): compare values of the same table only, and with as many "
                "isotropic vectors."
            )
    return " ".join(lines)


def _draw(results: Results, frame: pd.DataFrame, models: list[str], figures: Path) -> None:
    height = 3.2
    save_panels(figures / "explained-variance.png", [_shares_panel(frame, model) for model in models], height=height)
    save_panels(figures / "standard-deviations.png", [_std_panel(frame, model) for model in models], height=height)
    save_panels(figures / "layers.png", [_layers_panel(results, model) for model in models], height=height)
    save_panels(figures / "correlations.png", _map_panels(results, models), columns=3, height=3.9)
    save_panels(
        figures / "cold-start.png", [p for model in models for p in _cold_panels(results, model)], height=height
    )


def _shares_panel(frame: pd.DataFrame, model: str) -> Panel:
    groups = {name: (100 * part["share_1"]).tolist() for name, part in _views(frame, model).items()}
    return scores(groups, title=f"EV₁, {model}", x_label="% of the variance, a dot per seed")


def _std_panel(frame: pd.DataFrame, model: str) -> Panel:
    wanted = ("before fine-tuning", "no norm", "batch norm, after it", "IsoBN, after it")
    views = {name: part for name, part in _views(frame, model).items() if name in wanted}
    share = [100 * level for level in STD_QUANTILES]
    series = {name: (share, std_quantiles(part)) for name, part in views.items()}
    label = "standard deviation / median"
    return curves(series, title=f"Dimensions, {model}", x_label="% of the dimensions, by size", y_label=label)


def _layers_panel(results: Results, model: str) -> Panel:
    frame = layer_frame(results)
    frame = frame[frame["model"] == model]
    views = {"before fine-tuning": frame[~frame["tuned"] & (frame["arm"] == NONE)]}
    views |= {
        name: frame[frame["tuned"] & (frame["arm"] == arm)]
        for arm, name in ((NONE, "no norm"), (BATCH, "batch norm"), (ISO, "IsoBN"))
    }
    series = {}
    for name, part in views.items():
        if len(part):
            table = 100 * part.pivot(index="seed", columns="layer", values="share_1")
            series[name] = ([float(layer) for layer in table.columns], table.to_numpy())
    return curves(series, title=f"EV₁ of [CLS], {model}", x_label="layer", y_label="% of the variance", whole_x=True)


def _map_panels(results: Results, models: list[str]) -> list[Panel]:
    panels = []
    for model in models:
        maps = {"before fine-tuning": correlation_maps(results, model, NONE).get(False)}
        maps |= {
            name: correlation_maps(results, model, arm).get(True) for arm, name in ((NONE, "no norm"), (ISO, "IsoBN"))
        }
        for name, values in maps.items():
            if values is not None:
                panels.append(matrix(values, title=f"{name}, {model}", label="absolute correlation", limits=(0.0, 1.0)))
    return panels


def _cold_panels(results: Results, model: str) -> list[Panel]:
    found = cold_starts(results, model)
    steps = [float(step) for step in range(1, 1 + next((values.shape[1] for values in found.values()), 0))]
    names = {"saturated_released": "as released", "saturated": "as defined"}
    series = {said: (steps, 100 * found[name]) for name, said in names.items() if name in found}
    panels = [
        curves(series, title=f"Saturated correlations, {model}", x_label="batches seen", y_label="% of all pairs")
    ]
    gap = _loss_gap(results, model)
    if gap is not None:
        words = f"Training loss, {model}"
        panels.append(curves({"gap": gap}, title=words, x_label="step", y_label="released - defined, nats", chance=0.0))
    return panels


def _loss_gap(results: Results, model: str) -> tuple[list[float], np.ndarray] | None:
    """What the released code adds to the training loss along the steps, for each seed."""
    found = {
        (result["arm"], result["seed"]): result["stages"][0]["training"]
        for result in cells_of(results)
        if result["model"] == model
    }
    seeds = [seed for arm, seed in found if arm == RELEASED and (ISO, seed) in found]
    if not seeds:
        return None
    gaps = [np.subtract(found[RELEASED, seed]["loss"], found[ISO, seed]["loss"]) for seed in seeds]
    return [float(step) for step in found[ISO, seeds[0]]["step"]], np.array(gaps)


if __name__ == "__main__":
    study_command(__file__, render)()
