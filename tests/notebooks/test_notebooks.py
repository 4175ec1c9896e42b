"""Every notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST, *OF_STUDIES = NOTEBOOKS


def study_of(notebook: Path) -> str:
    """Name of the study that a notebook walks through."""
    return notebook.stem.partition("_")[2]


def results_of(notebook: Path) -> Path:
    return ROOT / "analyses" / study_of(notebook) / "results" / "standard.jsonl"


def printed(notebook: NotebookNode) -> str:
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    ).execute()
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.filterwarnings("ignore")  # those of the kernel's own start
def test_the_first_notebook_runs(run_a: Path, run_b: Path) -> None:
    notebook = nbformat.read(FIRST, as_version=4)
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1, "one cell names the runs"
    parameters[0].source += f"\nRUN_A, RUN_B = Path({str(run_a)!r}), Path({str(run_b)!r})"
    assert "•" in printed(notebook), "the findings are printed"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path", [path for path in OF_STUDIES if results_of(path).is_file()], ids=lambda path: path.stem
)
def test_the_notebook_of_a_study_runs_on_its_results(path: Path) -> None:
    assert printed(nbformat.read(path, as_version=4)), "it says something"


def test_each_study_has_a_notebook() -> None:
    assert FIRST.stem == "01_first_look"
    assert {path.parent.name for path in (ROOT / "analyses").glob("*/study.py")} == {
        study_of(path) for path in OF_STUDIES
    }
