"""Whether fine-tuning destroys what the encoder knew, and whether R3F and its relatives keep it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from collapse_chain import (
    SOURCE_POSITION,
    Chain,
    NoiseRow,
    after_first,
    chains_of,
    noise_rows,
    retention,
    source_change,
    source_probes,
)

from dynprobe.cli.study import study_command
from dynprobe.experiments.over_seeds import SHARES, OverSeeds, larger
from dynprobe.experiments.statements import Statement, headlines, in_words, judge
from dynprobe.experiments.tables import (
    arm_table,
    interval,
    markdown,
    points,
    score_frame,
    versions_of,
)
from dynprobe.metrics import MeanDifference, paired_difference
from dynprobe.report.panels import curves, differences, list_height, save_panels

MARGIN = 0.02
STANDARD = "standard"
RELEASED_NOISE = 1e-5
Results = Sequence[Mapping[str, Any]]
Measure = Callable[[Chain], float]
# The methods that the paper proposes.
CLAIMED = ("r3f", "r4f")


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    chains = chains_of(results, cycles=1)
    cycles = chains_of(results, cycles=2)
    example = next(iter(chains.values()))[0]
    setup = results[0]["stages"][0]["setup"]
    return {
        "chain": " → ".join(example.tasks),
        "probed": ", ".join(example.probed),
        "n_train": str(setup["train_examples"]),
        "n_steps": str(setup["max_steps"]),
        "n_probe": str(example.n_probe),
        "margin": points(MARGIN),
        "findings": "\n".join(f"* {line}" for line in _findings(results, chains, cycles)),
        "scores": _scores(results, list(chains)),
        "generalisation": _generalisation(chains),
        "degradation": _degradation(chains, figures / "degradation.png"),
        "retention": _retention(cycles, figures / "retention.png"),
        "noise": _noise(results, figures / "noise.png"),
        "n_cells": str(len(results)),
        "n_trainings": str(sum(len(result["stages"]) for result in results)),
        "seeds": ", ".join(sorted({f"{arm} {len(found)}" for arm, found in {**chains, **cycles}.items()})),
        "versions": versions_of(results),
    }


def _findings(results: Results, chains: Mapping[str, list[Chain]], cycles: Mapping[str, list[Chain]]) -> list[str]:
    """The claims of the paper, judged together, and what standard training does."""
    standard = chains[STANDARD]
    told = [f"**{found.verdict}**: {in_words(found)}." for found in judge(_claims(chains, cycles))]
    source = _over_seeds(standard, lambda chain: source_probes(chain)[-1], lambda chain: source_probes(chain)[0])
    others = _over_seeds(standard, after_first, lambda chain: after_first(chain, at_start=True))
    told.append(
        f"Standard training, along the chain: {_direction(source)}: the probe of the source task changes by "
        f"{_gap_words(source)} points from the first training to the last."
    )
    told.append(
        f"Standard training, on the first task alone: {_direction(others)}: probes of the other tasks change by "
        f"{_gap_words(others)} points from the pretrained encoder."
    )
    return told + _noise_finding(results)


def _claims(chains: Mapping[str, list[Chain]], cycles: Mapping[str, list[Chain]]) -> list[Statement]:
    """What the paper claims of its methods, as far as their arms were run."""
    standard, standard_cycles = chains[STANDARD], cycles.get(f"{STANDARD}-cycles", [])
    claims = []
    for arm in (arm for arm in CLAIMED if arm in chains):
        better = "than standard training does"
        said = {
            f"{arm.upper()} leaves a representation from which other tasks can be probed better {better}": after_first,
            f"{arm.upper()} keeps the source task better along the chain {better}": source_change,
        }
        claims += [_claim(text, chains[arm], standard, measure) for text, measure in said.items()]
    for arm in (f"{arm}-cycles" for arm in CLAIMED if standard_cycles and f"{arm}-cycles" in cycles):
        text = f"{arm.removesuffix('-cycles').upper()} retains all tasks better in the last cycle than standard training does"
        claims.append(_claim(text, cycles[arm], standard_cycles, lambda chain: float(retention(chain)[-1].mean())))
    return claims


def summary(results: Results) -> list[tuple[str, str, str]]:
    """The headline claims: claim, what was measured, verdicts."""
    found = judge(_claims(chains_of(results, cycles=1), chains_of(results, cycles=2)))
    return list(headlines({str(results[0]["model"]): found}, [said.text for said in found]))


def _claim(text: str, own: Sequence[Chain], standard: Sequence[Chain], measure: Measure) -> Statement:
    """That what is measured is larger than in standard training with the same seed."""
    both = [
        OverSeeds(
            values={chain.seed: float(measure(chain)) for chain in chains}, resolution=1 / own[0].n_probe, unit=SHARES
        )
        for chains in (own, standard)
    ]
    return larger(text, *both, margin=MARGIN)


def _direction(gap: MeanDifference) -> str:
    if gap.low > -MARGIN and gap.high < MARGIN:
        return f"**retained** within {points(MARGIN)} points"
    return "**improved**" if gap.low > 0 else "**degraded**" if gap.high < 0 else "**cannot be told**"


def _gap_words(gap: MeanDifference) -> str:
    return interval(gap.difference, gap.low, gap.high)


def _gap(own: Sequence[Chain], standard: Sequence[Chain], measure: Measure) -> MeanDifference:
    """Method − standard, paired by seed."""
    by_seed = {chain.seed: float(measure(chain)) for chain in standard}
    paired = [(float(measure(chain)), by_seed[chain.seed]) for chain in own if chain.seed in by_seed]
    return paired_difference(*map(np.array, zip(*paired, strict=True)), resolution=1 / own[0].n_probe)


def _over_seeds(chains: Sequence[Chain], later: Measure, earlier: Measure) -> MeanDifference:
    """Later − earlier within each seed."""
    values = np.array([[float(later(chain)), float(earlier(chain))] for chain in chains])
    return paired_difference(values[:, 0], values[:, 1], resolution=1 / chains[0].n_probe)


def _scores(results: Results, arms: Sequence[str]) -> str:
    """Scores on the first task, with what each method costs."""
    frame = score_frame(results)
    frame = frame[(frame["stage"] == 0) & frame["arm"].isin(arms)]
    rows = []
    for row in arm_table(frame, reference=STANDARD, margin=MARGIN).to_dict("records"):
        own = [result["stages"][0] for result in results if result["arm"] == row["arm"]]
        steps = own[0]["setup"]["max_steps"] / next(
            result["stages"][0]["setup"]["max_steps"] for result in results if result["arm"] == STANDARD
        )
        cost = steps * np.mean([_passes(stage["training"]) for stage in own])
        verdict = row["verdict"] if isinstance(row["verdict"], str) else "–"
        rows.append(
            [
                row["arm"], str(row["n"]), points(row["median"]), points(row["sd"]), points(row["max"]),
                interval(row["difference"], row["low"], row["high"]), verdict, f"{cost:.2f}",
            ]
        )  # fmt: skip
    return markdown(["method", "seeds", "median", "sd", "best of n", "difference [95 %]", "verdict", "cost"], rows)


def _passes(training: Mapping[str, Any]) -> float:
    """Forward and backward passes of a training step, in those of standard training."""
    extra = (np.mean(training.get(name, [0.0])) for name in ("extra_forwards", "extra_backwards"))
    forward, backward = (1.0 + float(each) for each in extra)
    return (forward + 2 * backward) / 3


def _generalisation(chains: Mapping[str, list[Chain]]) -> str:
    """Probes of the other tasks after the first training, by method; the pretrained and the random encoder beside."""
    example = next(iter(chains.values()))[0]
    others = [task for task in example.probed if task != example.tasks[0]]
    rows = [
        ["commonest class", *(points(example.chance[task]) for task in others), "–"],
        ["random encoder", *(points(example.random(task)) for task in others), "–"],
        ["pretrained", *(points(example.start(task)) for task in others), "–"],
    ]
    for arm, own in chains.items():
        means = [points(float(np.mean([chain.probe(0, task) for chain in own]))) for task in others]
        gap = "–" if arm == STANDARD else _gap_words(_gap(own, chains[STANDARD], after_first))
        rows.append([arm, *means, gap])
    return markdown(["encoder", *others, "mean − standard's [95 %]"], rows)


def _degradation(chains: Mapping[str, list[Chain]], path: Path) -> str:
    """Probe of the source task after each training of the chain."""
    example = next(iter(chains.values()))[0]
    series = {arm: np.array([source_probes(chain) for chain in own]) for arm, own in chains.items()}
    at = range(1, len(example.tasks) + 1)
    panel = curves(
        {arm: (list(at), 100 * values) for arm, values in series.items()},
        title=f"Probe of {example.tasks[SOURCE_POSITION]} along the chain",
        x_label=f"training ({', '.join(example.tasks)})",
        y_label="accuracy of the probe, %",
        whole_x=True,
    )
    gaps = {
        arm: _over_seeds(own, lambda chain: source_probes(chain)[-1], lambda chain: source_probes(chain)[0])
        for arm, own in chains.items()
    }
    forest = differences(
        {arm: (100 * gap.difference, 100 * gap.low, 100 * gap.high) for arm, gap in gaps.items()},
        title="Change from first to last training",
        x_label="points",
        margin=100 * MARGIN,
    )
    save_panels(path, [panel, forest], height=max(3.2, list_height(len(gaps))))
    rows = [
        [arm, *(points(value) for value in values.mean(axis=0)), _gap_words(gaps[arm]), _direction(gaps[arm])]
        for arm, values in series.items()
    ]
    header = ["method", *(f"after {task}" for task in example.tasks), "last − first [95 %]", "verdict"]
    return f"![Probe of the source task along the chain](figures/{path.name})\n\n{markdown(header, rows)}"


def _retention(cycles: Mapping[str, list[Chain]], path: Path) -> str:
    """Probe of each task just before it is trained on again, mean over the tasks, by cycle."""
    if not cycles:
        return "No chain with cycles was run."
    tables = {arm: np.array([retention(chain).mean(axis=1) for chain in own]) for arm, own in cycles.items()}
    n_cycles = next(iter(tables.values())).shape[1]
    panel = curves(
        {arm: (list(range(1, n_cycles + 1)), 100 * values) for arm, values in tables.items()},
        title="Mean probe of each task before it is trained on",
        x_label="cycle",
        y_label="accuracy of the probe, %",
        whole_x=True,
    )
    save_panels(path, [panel])
    rows = []
    for arm, values in tables.items():
        rise = paired_difference(values[:, -1], values[:, 0], resolution=1 / cycles[arm][0].n_probe)
        rows.append([arm, *(points(value) for value in values.mean(axis=0)), _gap_words(rise)])
    header = ["method", *(f"cycle {number + 1}" for number in range(n_cycles)), "last − first [95 %]"]
    return f"![Probes by cycle](figures/{path.name})\n\n{markdown(header, rows)}"


def _noise(results: Results, path: Path) -> str:
    """Divergence between clean and noisy pass by noise and dropout, and what it does to the score."""
    found = noise_rows(results)
    if not found:
        return "The grid of noise and dropout was not run."
    panels = [
        differences(
            {f"{row.noise:g}": (100 * row.gap.difference, 100 * row.gap.low, 100 * row.gap.high) for row in own},
            title="with dropout" if with_dropout else "without dropout",
            x_label="accuracy, points above no noise" if with_dropout else "accuracy, points above standard",
            margin=100 * MARGIN,
        )
        for with_dropout in (True, False)
        if (own := [row for row in found if row.with_dropout is with_dropout and row.gap is not None])
    ]
    save_panels(path, panels, height=list_height(4))
    rows = [
        [
            f"{row.noise:g}", "as pretrained" if row.with_dropout else "none", f"{row.divergence:.2e}",
            _share(row), points(row.score),
            "–" if row.gap is None else _gap_words(row.gap),
        ]
        for row in found
    ]  # fmt: skip
    header = ["noise", "dropout", "divergence", "of it by dropout alone, % [95 %]", "score", "difference [95 %]"]
    return f"![Score by noise, with and without dropout](figures/{path.name})\n\n{markdown(header, rows)}"


def _share(row: NoiseRow) -> str:
    """Share of dropout with its interval over the seeds, in percent."""
    if row.share is None:
        return "–"
    low, high = (f"{100 * (1 + end):.0f}" for end in (row.share.low, row.share.high))
    return f"{100 * (1 + row.share.difference):.0f} [{low}, {high}]"


def _noise_finding(results: Results) -> list[str]:
    """Whether R3F at the released noise scale is more than two dropout passes."""
    released = [row for row in noise_rows(results) if row.with_dropout and row.noise == RELEASED_NOISE]
    if not released or released[0].share is None or released[0].share.n_x < 2:
        return []
    (row,) = released
    share = row.share
    low, high = 1 + share.low, 1 + share.high
    told = "cannot be told from two dropout passes" if low <= 1 <= high else "differs from two dropout passes"
    score = f", and its score from that without noise by {_gap_words(row.gap)} points" if row.gap else ""
    return [
        f"R3F at the released noise scale ({RELEASED_NOISE:g}) **{told}**: dropout alone makes "
        f"{100 * (1 + share.difference):.0f} % [{100 * low:.0f}, {100 * high:.0f}] of its divergence{score}. Without dropout "
        f"the noise makes a divergence of {_without_dropout(results)} nats, with it the whole is {row.divergence:.1e}."
    ]


def _without_dropout(results: Results) -> str:
    """The divergence at the released scale in a model without dropout."""
    alone = [row.divergence for row in noise_rows(results) if not row.with_dropout and row.noise == RELEASED_NOISE]
    return f"{alone[0]:.1e}" if alone else "an unmeasured number of"


if __name__ == "__main__":
    study_command(__file__, render)()
