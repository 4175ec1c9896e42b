"""Every study in analyses/: its experiments can be read, its page is what its results say, its quick form runs to the end."""

import importlib.util
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from dynprobe.cli.study import study_command
from dynprobe.experiments.study import FORMS, Study, render_page

ANALYSES = Path(__file__).parents[2] / "analyses"
STUDIES = sorted(path.parent for path in ANALYSES.glob("*/study.py"))

WITH_RESULTS = [folder for folder in STUDIES if (folder / "results" / "standard.jsonl").is_file()]


def script(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_{folder.name}", folder / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(folder: Path) -> click.Command:
    return study_command(str(folder / "study.py"), script(folder).render)


def test_the_studies_are_found() -> None:
    assert {folder.name for folder in STUDIES} >= {"methods"}


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
@pytest.mark.parametrize("form", FORMS)
def test_a_dry_run_says_what_would_be_done(folder: Path, form: str) -> None:
    said = CliRunner().invoke(command(folder), ["--form", form, "--dry-run"])
    assert said.exit_code == 0, said.output
    cells = Study(folder, script(folder).render).experiment(form).cells
    assert f"{len(cells)} cells, {sum(len(cell.stages) for cell in cells)} trainings" in said.output


@pytest.mark.parametrize("folder", WITH_RESULTS, ids=lambda folder: folder.name)
def test_the_page_is_what_the_results_say(folder: Path, tmp_path: Path) -> None:
    study = Study(folder, script(folder).render)
    page = render_page(study, study.kept_results, tmp_path)
    assert page.read_text(encoding="utf-8") == (folder / "README.md").read_text(encoding="utf-8"), (
        f"run `python analyses/{folder.name}/study.py --render`"
    )
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {path.name for path in (folder / "figures").iterdir()}
    assert all(f"figures/{name}" in page.read_text(encoding="utf-8") for name in drawn), "every figure is shown"


def test_the_table_in_the_readme_is_what_the_results_say() -> None:
    spec = importlib.util.spec_from_file_location("summary", ANALYSES / "summary.py")
    assert spec is not None
    assert spec.loader is not None
    summary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(summary)
    page = (ANALYSES.parent / "README.md").read_text(encoding="utf-8")
    assert summary.with_table(page) == page, "run `python analyses/summary.py`"
    assert summary.WORKS.keys() == {folder.name for folder in STUDIES} - {"methods"}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_quick_form_runs_to_the_end_and_goes_on_from_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = ["--form", "quick", "-o", str(tmp_path / "work")]
    said = CliRunner().invoke(command(folder), asked)
    assert said.exit_code == 0, said.output
    page = (tmp_path / "work" / "README.md").read_text(encoding="utf-8")
    assert "{{" not in page
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("cells/*/result.json")}
    assert times
    assert CliRunner().invoke(command(folder), asked).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times, "what is finished is not done again"
    assert (tmp_path / "work" / "README.md").read_text(encoding="utf-8") == page
