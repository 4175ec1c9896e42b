"""A study: an experiment in several sizes, and a page that is made of its results alone."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments.comparisons import comparisons_of
from dynprobe.experiments.experiment import Experiment, read_experiment
from dynprobe.experiments.grid import Progress, run_experiment
from dynprobe.experiments.rendering import fill
from dynprobe.experiments.results import RESULTS, Results, cells_of, pairs_of, read_results

FORMS = ("quick", "standard", "paper")
PAGE, TEMPLATE, FIGURES = "README.md", "README.template.md", "figures"

# From results, and the folder for figures, to what stands at the places of the template.
Render = Callable[[Results, Path], Mapping[str, str]]


@dataclass(frozen=True)
class Study:
    """A folder with ``quick.yaml``, ``standard.yaml``, ``paper.yaml`` and ``README.template.md``, and how its page is made.

    Attributes
    ----------
    folder
        The folder; the standard form's ``results/standard.jsonl``, ``README.md`` and ``figures`` are kept in it.
    render
        Draws the figures and says what stands at the places of the template.
    """

    folder: Path
    render: Render

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    def experiment(self, form: str) -> Experiment:
        """The experiment of one form.

        Raises
        ------
        UsageError
            For a form that does not exist.
        """
        if form not in FORMS:
            raise UsageError(f"the form of a study must be one of {', '.join(FORMS)}; got {form!r}")
        return read_experiment(self.folder / f"{form}.yaml")

    @property
    def kept_results(self) -> Path:
        """Results of the standard form."""
        return self.folder / "results" / "standard.jsonl"


def run_study(study: Study, form: str, work: Path, *, n_jobs: int = 1, progress: Progress | None = None) -> Path:
    """Run what is not there yet, and make the page.

    Parameters
    ----------
    study
        The study.
    form
        ``"quick"`` for minutes, ``"standard"`` for an hour or two, ``"paper"`` for those who have the models.
    work
        Folder to work in; the same one goes on with what is there.
    n_jobs, progress
        As for :func:`~dynprobe.experiments.grid.run_experiment`.

    Returns
    -------
    pathlib.Path
        The page: in the study's own folder for the standard form, whose results are kept there too, else in `work`.
    """
    run_experiment(study.experiment(form), work, n_jobs=n_jobs, progress=progress)
    if form != "standard":
        return render_page(study, work / RESULTS, work, form=form)
    study.kept_results.parent.mkdir(exist_ok=True)
    shutil.copyfile(work / RESULTS, study.kept_results)
    return render_page(study, study.kept_results, study.folder)


def render_page(study: Study, results: Path, folder: Path, *, form: str = "standard") -> Path:
    """Make the page of a study, with its figures, from results.

    Parameters
    ----------
    study
        The study.
    results
        A file of results.
    folder
        Where ``README.md`` and ``figures`` are written.
    form
        Whose results they are.

    Raises
    ------
    DynprobeError
        When there are no results, or not those of all cells of the form and of no others, or the template has other places
        than there are values.
    """
    if not results.is_file():
        raise DynprobeError(f"{results}: must hold the results of the study; got none. Run it first")
    found = read_results(results)
    _require_whole(study.experiment(form), found, where=f"{results}, {form}.yaml")
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    values = study.render(found, figures)
    template = (study.folder / TEMPLATE).read_text(encoding="utf-8")
    page = folder / PAGE
    page.write_text(fill(template, values), encoding="utf-8")
    return page


def _require_whole(experiment: Experiment, results: Results, *, where: str) -> None:
    """A page of fewer results than its experiment has, or of more, would say what nobody measured."""
    asked = [f"{cell.label}" for cell in experiment.cells] + [
        f"{pair.kind} {pair.a.label} {pair.b.label}" for pair in comparisons_of(experiment)
    ]
    got = [_label(result) for result in cells_of(results)] + [
        f"{result['pair']} {_label(result, '_a')} {_label(result, '_b')}" for result in pairs_of(results)
    ]
    missing, others = (
        [name for name in dict.fromkeys(one) if name not in set(two)] for one, two in ((asked, got), (got, asked))
    )
    if missing or others or len(got) != len(asked):
        told = [
            f"{len(names)} {what}, the first is {names[0]}"
            for what, names in (("missing", missing), ("others", others))
            if names
        ]
        raise DynprobeError(
            f"{where}: must be the results of the experiment's {len(asked)} cells and comparisons, each once; got {len(got)}: "
            f"{'; '.join(told) or 'some twice'}. Run the study, which does what is missing"
        )


def _label(result: Mapping[str, Any], which: str = "") -> str:
    """As that of the cell."""
    return f"{result['model']} {result[f'arm{which}']} seed {result[f'seed{which}']}"
