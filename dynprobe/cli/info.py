"""`dynprobe info`: what a run directory holds."""

import json
from pathlib import Path

import click

from dynprobe.cli.console import out, plain, say


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def info(run_dir: Path, as_json: bool) -> None:  # noqa: FBT001 - an option
    """Show what RUN holds: model, probe set, steps, sizes, and what its capture had to say."""
    from dynprobe.cli.describe_run import facts_of, lines_of
    from dynprobe.run import open_run

    facts = facts_of(open_run(run_dir))
    if as_json:
        out.print_json(json.dumps(facts, default=str), ensure_ascii=True)
        return
    lines = lines_of(facts)
    width = max(len(name) for name, _ in lines)
    say(plain(str(facts["path"])))
    for name, value in lines:
        say(plain(f"  {name:<{width}}  {value}"))
    for note in facts["notes"]:
        say(plain(f"Note: {note}"))
    say(f"Next: dynprobe verify {run_dir}   or   dynprobe compare {run_dir} OTHER_RUN -o report.html")
