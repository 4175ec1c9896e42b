"""Experiment files: what they mean, and what is wrong with the wrong ones."""

from pathlib import Path
from typing import Any

import pytest

from dynprobe.errors import UsageError
from dynprobe.experiments.experiment import parse_experiment, read_experiment


def words(**more: Any) -> dict[str, Any]:
    return {
        "name": "first",
        "models": {"small": {"model": "somewhere"}},
        "training": {"task": "wic", "max_steps": 10},
        "arms": {"standard": {}, "r3f": {"methods": {"r3f": {"eps": "1e-4"}}}},
        "seeds": 2,
        **more,
    }


def test_an_arm_wins_over_a_model_over_a_task_over_what_is_for_all() -> None:
    found = parse_experiment(
        words(
            models={
                "small": {"model": "somewhere", "learning_rate": 0.1, "seeds": [3]},
                "large": {"model": "elsewhere"},
            },
            training={"task": "wic", "max_steps": 10, "learning_rate": 0.3, "batch_size": 3},
            tasks={"wic": {"max_steps": 20, "learning_rate": 0.2}},
            arms={"one": {"batch_size": 4}, "two": {"models": ["large"], "learning_rate": "1e-3", "seeds": 1}},
        )
    )
    asked = {
        (c.model, c.arm, c.seed): (c.stages[0].max_steps, c.stages[0].learning_rate, c.stages[0].batch_size)
        for c in found.cells
    }
    assert asked == {
        ("small", "one", 3): (20, 0.1, 4),
        ("large", "one", 0): (20, 0.2, 4),
        ("large", "one", 1): (20, 0.2, 4),
        ("large", "two", 0): (20, 0.001, 3),
    }
    assert (found.models, found.arms) == (("small", "large"), ("one", "two"))


def test_a_chain_goes_through_its_stages_in_cycles() -> None:
    found = parse_experiment(words(arms={"chain": {"stages": ["hyp", {"task": "shift", "max_steps": 3}], "cycles": 2}}))
    assert [(stage.task, stage.max_steps) for stage in found.cells[0].stages] == [("hyp", 10), ("shift", 3)] * 2


def test_numbers_that_yaml_takes_for_words_are_numbers() -> None:
    cell = parse_experiment(words()).cells[-1]
    assert cell.stages[0].methods == {"r3f": {"eps": 1e-4}}
    assert cell.stages[0].recipe(7).methods == (("r3f", {"eps": 1e-4}),)


def test_the_name_of_a_cell_changes_with_what_decides_its_result() -> None:
    def key(**more: Any) -> str:
        return parse_experiment(words(arms={"standard": more})).cells[0].key

    assert key() == key(patience=0)  # as it is by default
    assert len({key(), key(patience=1), key(methods="rdrop"), key(methods=["rdrop"]), key(max_steps=11)}) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"armes": {}}, r"got 'armes'. Is 'arms' meant\?"),
        ({"arms": {}}, "`arms` must name at least one"),
        ({"arms": {"a b": {}}}, "names of arms must be letters"),
        ({"arms": {"a": {"max_step": 3}}}, r"arm a of model small: .* got 'max_step'. Is 'max_steps' meant\?"),
        ({"arms": {"a": {"max_steps": 0}}}, "`max_steps` must be at least 1; got 0"),
        ({"arms": {"a": {"max_steps": "many"}}}, "`max_steps` must be int; got 'many'"),
        ({"arms": {"a": {"max_steps": True}}}, "`max_steps` must be int; got True"),
        ({"arms": {"a": {"learning_rate": -1.0}}}, "`learning_rate` must be positive"),
        ({"arms": {"a": {"learning_rate": float("nan")}}}, "`learning_rate` must be positive"),
        ({"arms": {"a": {"dropout": 1.0}}}, "`dropout` must be from 0 to below 1"),
        ({"arms": {"a": {"methods": "r3g"}}}, "r3g"),
        ({"arms": {"a": {"methods": {"r3f": {"epps": 1}}}}}, "epps"),
        ({"arms": {"a": {"methods": ["r3f", "smart"]}}}, "r3f"),
        ({"arms": {"a": {"methods": 3}}}, "`methods` must be names of methods"),
        ({"arms": {"a": {"models": ["large"]}}}, r"must be a list of models of this file \['small'\]; got \['large'\]"),
        ({"arms": {"a": {"models": []}}}, "at least one arm must be for one of the models"),
        ({"arms": {"a": {"stages": []}}}, "`stages` must be a list of trainings"),
        ({"arms": {"a": {"cycles": 0}}}, "`cycles` how often"),
        ({"arms": {"a": 3}}, "a: must be names with values; got 3"),
        ({"seeds": 0}, "`seeds` must be how many"),
        ({"seeds": [1, 1]}, "`seeds` must be how many, or a list of different ones"),
        ({"measure": {"schedule": "often"}}, "`schedule` must be 'log:N'"),
        ({"measure": {"probe_train": 0}}, "`probe_train` must be at least 1"),
        ({"measure": {"probes": ["wic", "wic"]}}, "`probes` must name each task once"),
        ({"measure": {"pairs": ["tasks"]}}, "`pairs` must be among .*seeds, arms; got 'tasks'"),
        (
            {"training": {"task": "wic", "max_steps": 10, "model": 3}, "models": {"small": {}}},
            "`model` must be str; got 3",
        ),
        ({"models": {"small": {}}}, "must also give model"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_experiment(words(**more))


def test_files_that_are_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got nothing there"):
        read_experiment(tmp_path / "none.yaml")
    file = tmp_path / "a.yaml"
    for content, message in (
        ("- a", "must be names with values"),
        ("a: [", "must be YAML"),
        ("!!python/name:os.system", "must be YAML"),
    ):
        file.write_text(content)
        with pytest.raises(UsageError, match=message):
            read_experiment(file)
    file.write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match="must be YAML"):
        read_experiment(file)
