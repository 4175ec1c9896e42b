"""The command of a study: each script in `analyses/` is one."""

from pathlib import Path

import click

from dynprobe.cli.console import say
from dynprobe.cli.experiment import progress_of_cells, show_plan
from dynprobe.errors import DynprobeError
from dynprobe.experiments.study import FORMS, Render, Study, render_page, run_study


def study_command(script: str, render: Render) -> click.Command:
    """The command line of a study.

    Parameters
    ----------
    script
        ``__file__`` of the script in the study's folder.
    render
        As in :class:`~dynprobe.experiments.study.Study`.
    """
    study = Study(Path(script).resolve().parent, render)

    @click.command(
        help=f"Run the study {study.name} and make its page. The same command goes on after an interruption."
    )
    @click.option("--form", type=click.Choice(FORMS), default="standard", show_default=True, help="How large.")
    @click.option(
        "-o", "--output", "work", type=click.Path(path_type=Path), help="Folder to work in.  [runs/NAME-FORM]"
    )
    @click.option(
        "--jobs", "n_jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at a time."
    )
    @click.option("--dry-run", is_flag=True, help="Check the file, print what would be done, and end.")
    @click.option("--render", "only_render", is_flag=True, help="Make the page anew from the results that are kept.")
    def command(form: str, work: Path | None, n_jobs: int, dry_run: bool, only_render: bool) -> None:  # noqa: FBT001
        try:
            if dry_run:
                show_plan(study.experiment(form))
            elif only_render:
                say(str(render_page(study, study.kept_results, study.folder)))
            else:
                with progress_of_cells() as advance:
                    place = work or Path("runs") / f"{study.name}-{form}"
                    page = run_study(study, form, place, n_jobs=n_jobs, progress=advance)
                say(str(page))
        except DynprobeError as error:
            raise click.ClickException(str(error)) from error

    return command
