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
    assert len({key(methods=["r3f", "mixout"]), key(methods=["mixout", "r3f"]), key(methods=["r3f"])}) == 3
    assert key(methods={"mixout": {}, "r3f": {}}) == key(methods=["mixout", "r3f"])


def test_the_names_of_cells_whose_results_are_kept_stay_as_they_are() -> None:
    arms = {"plain": {}, "one": {"methods": {"r3f": {"eps": "1e-4"}}}, "chain": {"stages": ["hyp", "mr"]}}
    found = parse_experiment(words(arms=arms, seeds=1, measure={"probes": ["subj"], "probe_task": "glue/rte"}))
    assert [cell.key.rpartition(".")[2] for cell in found.cells] == ["d995b1649e", "6e7c53616e", "8aae16b32d"]


def test_the_name_of_a_cell_changes_with_the_users_own_data(tmp_path: Path) -> None:
    file, folder = tmp_path / "own.csv", tmp_path / "parts"
    folder.mkdir()

    def keys() -> list[str]:
        arms = {"on": {"task": str(file)}, "whole": {"task": str(folder)}, "other": {}}
        probed = parse_experiment(words(arms={"p": {}}, seeds=1, measure={"probes": [str(file)]}))
        measured = parse_experiment(words(arms={"p": {}}, seeds=1, measure={"probe_task": str(folder)}))
        return [
            cell.key
            for asked in (parse_experiment(words(arms=arms, seeds=1)), probed, measured)
            for cell in asked.cells
        ]

    def changed(before: list[str], after: list[str]) -> list[bool]:
        return [one != two for one, two in zip(before, after, strict=True)]

    missing = keys()
    file.write_text("text,label\na,1\n")
    (folder / "train.csv").write_text("text,label\na,1\n")
    first = keys()
    assert first == keys()
    assert changed(missing, first) == [True, True, False, True, True]
    file.write_text("text,label\na,2\n")
    second = keys()
    assert changed(first, second) == [True, False, False, True, False]
    (folder / "dev.csv").write_text("text,label\na,1\n")
    assert changed(second, keys()) == [False, True, False, False, True]
    third = keys()
    (folder / "notes.txt").write_text("of no split")
    assert third == keys()


def test_the_first_seed_of_an_arm_is_known() -> None:
    found = parse_experiment(words(seeds=[3, 1], arms={"a": {}, "b": {"seeds": [1]}}))
    assert [(cell.arm, cell.seed) for cell in found.cells if cell.is_first_seed] == [("a", 3), ("b", 1)]


def test_arms_of_two_models_need_no_common_first_one() -> None:
    models = {"small": {"model": "x", "seeds": 2}, "large": {"model": "y", "seeds": 1}}
    found = parse_experiment(words(models=models, arms={"a": {"models": ["small"]}, "b": {"models": ["large"]}}))
    assert [(cell.model, cell.arm, cell.seed) for cell in found.cells] == [
        ("small", "a", 0),
        ("small", "a", 1),
        ("large", "b", 0),
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"armes": {}}, r"got 'armes'. Is 'arms' meant\?"),
        ({"arms": {}}, "`arms` must name at least one"),
        ({"arms": {"a b": {}}}, "names of arms must be letters"),
        ({"arms": {"a": {"max_step": 3}}}, r"arm a of model small: .* got 'max_step'. Is 'max_steps' meant\?"),
        ({"arms": {"a": {"max_steps": 0}}}, "`max_steps` must be at least 1; got 0"),
        ({"arms": {"a": {"max_steps": "many"}}}, "`max_steps` must be a whole number; got 'many'"),
        ({"arms": {"a": {"max_steps": True}}}, "`max_steps` must be a whole number; got true"),
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
            "`model` must be text; got 3",
        ),
        ({"measure": {"probes": "wic"}}, "`probes` must be a list; got 'wic'"),
        ({"measure": {"probes": [5]}}, "`probes` must be a list, each entry of it text; got 5 in it"),
        ({"measure": {"probes": ["wic", None]}}, "`probes` must be a list, each entry of it text; got nothing in it"),
        ({"measure": {"isotropy": 1}}, "`isotropy` must be true or false; got 1"),
        ({"measure": {"probe_task": 1}}, "`probe_task` must be text or nothing; got 1"),
        ({"arms": ["a"]}, r"`arms` must be a mapping of names to settings; got \['a'\]"),
        ({"training": {"task": "wic", "learning_rate": "x"}}, "`learning_rate` must be a number; got 'x'"),
        ({"tasks": {"wik": {"max_steps": 3}}}, r"`tasks` must name .* or probed: wic; got 'wik'. Is 'wic' meant\?"),
        ({"tasks": {"mr": {"max_steps": 3}}}, "`tasks` must name tasks that are trained on or probed: wic; got 'mr'$"),
        (
            {"arms": {"a": {}, "b": {"seeds": 3}}},
            r"arm b of model small: `seeds` must be among .* arm a,.*got \[2\] besid",
        ),
        (
            {"arms": {"a": {}, "b": {"capture": False}}, "measure": {"pairs": ["start"]}},
            "arm b of model small: `capture` must not be false where `measure` has `pairs`",
        ),
        (
            {"arms": {"b": {"stages": [{"capture": False}, "hyp"]}}, "measure": {"probes": ["mr"]}},
            "arm b of model small: `capture` must not be false where `measure` has `probes`",
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
    file.write_text("name: e\nmodels:\n  m: {model: x}\narms: {}\nmodels: {}\n")
    with pytest.raises(UsageError, match=r"a\.yaml, line 5: `models` must be given once; it stands in line 2 already"):
        read_experiment(file)
    file.write_text("arms:\n  - {a: {b: 1,\n    b: 2}}\n")
    with pytest.raises(UsageError, match="line 3: `b` must be given once; it stands in line 2"):
        read_experiment(file)
    file.write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match="must be YAML"):
        read_experiment(file)


def test_what_is_merged_into_a_mapping_may_be_given_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: e\nmodels:\n  m: &m {model: x, task: wic, max_steps: 3}\n  n: &n {<<: *m, max_steps: 4}\n"
        "  o: {<<: *n, max_steps: 5}\narms: {a: {}}\nseeds: 1\n"
    )
    assert [cell.stages[0].max_steps for cell in read_experiment(file).cells] == [3, 4, 5]
