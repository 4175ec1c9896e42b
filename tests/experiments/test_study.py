"""A study's page is made of all results of its experiment and of no others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dynprobe.errors import DynprobeError
from dynprobe.experiments.results import write_results
from dynprobe.experiments.study import Study, render_page
from dynprobe.report.panels import save_panels

EXPERIMENT = """
name: s
models: {m: {model: x, task: wic}}
seeds: SEEDS
arms: {a: {}, b: {}}
measure: {pairs: [seeds]}
"""


def render(results: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, str]:
    return {"n": str(len(results))}


def results_of(seeds: int) -> list[dict[str, Any]]:
    cells = [{"model": "m", "arm": arm, "seed": seed} for arm in "ab" for seed in range(seeds)]
    pairs = [
        {"pair": "seeds", "model": "m", "arm_a": arm, "seed_a": one, "arm_b": arm, "seed_b": two}
        for arm in "ab"
        for one in range(seeds)
        for two in range(one + 1, seeds)
    ]
    return [*cells, *pairs]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "standard.yaml").write_text(EXPERIMENT.replace("SEEDS", "2"))
    (tmp_path / "quick.yaml").write_text(EXPERIMENT.replace("SEEDS", "1"))
    (tmp_path / "README.template.md").write_text("{{ n }} results\n")
    return Study(tmp_path, render)


def test_a_page_is_made_of_the_results_of_its_form(study: Study, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    write_results(file, results_of(2))
    assert render_page(study, file, tmp_path).read_text() == "6 results\n"
    write_results(file, results_of(1))
    assert render_page(study, file, tmp_path / "quick", form="quick").read_text() == "2 results\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[1:], r"got 5: 1 missing, the first is m a seed 0\. Run the study"),
        (lambda found: found[:-1], "got 5: 1 missing, the first is seeds m b seed 0 m b seed 1"),
        (lambda found: results_of(3), "got 12: 6 others, the first is m a seed 2"),
        (
            lambda found: [*found[:-2], {**found[0], "arm": "c"}],
            "got 5: 2 missing, .*; 1 others, the first is m c seed 0",
        ),
        (lambda found: [*found, found[0]], "got 7: some twice"),
    ],
)
def test_results_that_are_not_those_of_the_experiment_make_no_page(
    study: Study, tmp_path: Path, change: Any, message: str
) -> None:
    file = tmp_path / "r.jsonl"
    write_results(file, change(results_of(2)))
    with pytest.raises(
        DynprobeError, match=rf"standard\.yaml: must be .* 6 cells and comparisons, each once; {message}"
    ):
        render_page(study, file, tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_a_figure_has_panels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`panels` must hold at least one panel; got none to draw into a\.png"):
        save_panels(tmp_path / "a.png", [])
    assert not (tmp_path / "a.png").exists()
