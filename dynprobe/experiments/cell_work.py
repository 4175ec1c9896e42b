"""The work of one cell of an experiment: its chain of trainings, each measured from its run directory."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from dynprobe.capture.manifest import versions
from dynprobe.capture.settings import CaptureSettings, parse_bytes
from dynprobe.errors import DynprobeError
from dynprobe.experiments.experiment import Cell, Measure
from dynprobe.experiments.isotropy_readings import read_isotropy
from dynprobe.experiments.probe_readings import read_probes
from dynprobe.experiments.readings import read_run, read_training
from dynprobe.experiments.setup import Setup, take_examples
from dynprobe.experiments.task_files import digests_of
from dynprobe.experiments.training import Watch, quiet, train_with_capture
from dynprobe.run import open_run
from dynprobe.storage.layout import task_name_of
from dynprobe.tasks import Split, Task, load_task

RESULT = "result.json"
# Seeds of the trainings of a chain: far enough apart that no two chains share one.
_SEEDS_APART = 1_000_000


def run_cell(cell: Cell, folder: Path, *, n_threads: int | None = None) -> dict[str, Any]:
    """Train and measure one cell; goes on after the last training that an earlier call completed.

    Parameters
    ----------
    cell
        What to do.
    folder
        Folder of its own for what it leaves: ``result.json``, and the run directory of each training.
    n_threads
        Threads of torch; by default as many as it has.

    Returns
    -------
    dict
        ``model``, ``arm``, ``seed``, ``versions`` of the libraries, and ``stages``: for each training its setup, scores, curves
        and measures.

    Raises
    ------
    DynprobeError
        When something in the setup cannot be carried out.
    """
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    done = folder / RESULT
    if done.is_file():
        return read_json(done)
    _require_same_files(cell)
    folder.mkdir(parents=True, exist_ok=True)
    stages = []
    for number, setup in enumerate(cell.stages):
        file = folder / f"stage-{number}.json"
        if not file.is_file():
            before = folder / f"encoder-{number - 1}" if number else None
            write_json(file, _run_stage(cell, number, setup, folder=folder, before=before))
        stages.append(read_json(file))
        if number:
            shutil.rmtree(folder / f"encoder-{number - 1}", ignore_errors=True)
    result = {"model": cell.model, "arm": cell.arm, "seed": cell.seed, "stages": stages, "versions": versions()}
    write_json(done, result)
    return result


def run_folder(folder: Path, stage: int) -> Path:
    """The run directory of a training of a cell."""
    return folder / f"run-{stage}"


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote.

    Raises
    ------
    DynprobeError
        When it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DynprobeError(
            f"{path}: must be JSON as it was written; {error}. Remove it to have it made again"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is either whole or not there."""
    write_whole(path, json.dumps(content))


def write_whole(path: Path, text: str) -> None:
    """Write a text so that, whenever the process ends, the file holds all of it, or what it held before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _require_same_files(cell: Cell) -> None:
    """What is trained on must be what the key says, however long ago the experiment was read."""
    if digests_of(name for name, _ in cell.task_files) != cell.task_files:
        names = ", ".join(name for name, _ in cell.task_files)
        raise DynprobeError(
            f"{names}: must not be changed while the experiment runs; run it again to take the new ones"
        )


def _run_stage(cell: Cell, number: int, setup: Setup, *, folder: Path, before: Path | None) -> dict[str, Any]:
    task, run_dir = setup.load_task(), run_folder(folder, number)
    is_last = number == len(cell.stages) - 1
    saved = folder / "tuned"
    recipe = setup.recipe(cell.seed + _SEEDS_APART * number, model=str(before) if before else None)
    began = time.perf_counter()
    trained = train_with_capture(
        task,
        recipe,
        run_dir if setup.capture else None,
        watch=_watch(cell.measure, task),
        existing="replace",
        save_model=None if is_last else saved,
        on_step=_silent,
    )
    seconds = time.perf_counter() - began
    stage = {
        "setup": setup.facts(),
        "scores": dict(trained.scores),
        "seconds": round(seconds, 2),
        **read_training(trained.log, task),
        **(read_run(open_run(run_dir)) if setup.capture else {}),
    }
    if setup.capture and cell.measure.probes:
        found = read_probes(open_run(run_dir), with_start=number == 0)
        stage["probes"] = {name: found[task_name_of(name)] for name in cell.measure.probes}
    if setup.capture and cell.measure.isotropy:
        run = open_run(run_dir)
        stage["isotropy"] = read_isotropy(
            run, batch_size=setup.batch_size, seed=cell.seed, keep_maps=cell.is_first_seed
        )
    if not cell.measure.pairs:
        shutil.rmtree(run_dir, ignore_errors=not setup.capture)
    if not is_last:
        keep_encoder(saved, folder / f"encoder-{number}")
        shutil.rmtree(saved)
    return stage


def _watch(measure: Measure, task: Task) -> Watch:
    settings = CaptureSettings(schedule=measure.schedule, budget=parse_bytes(measure.budget))
    probe = Split(task["validation"].take(min(measure.probe_examples, len(task["validation"]))).texts, None)
    if measure.probe_task is not None:
        examples = load_task(measure.probe_task)["validation"]
        probe = Split(examples.take(min(measure.probe_examples, len(examples))).texts, None)
    tasks = {
        task_name_of(name): take_examples(
            load_task(name), train=measure.probe_train, validation=1, test=measure.probe_test
        )
        for name in measure.probes
    }
    return Watch(settings, probe, tasks)


def keep_encoder(model: Path, folder: Path) -> None:
    """Save a tuned classifier without its head, and its tokenizer: what the next training of a chain starts from.

    Parameters
    ----------
    model, folder
        Folder of the classifier, and of what is made of it.
    """
    with quiet():  # the head is left out on purpose
        AutoModel.from_pretrained(model, trust_remote_code=False).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model, trust_remote_code=False).save_pretrained(folder)


def _silent(done: int, total: int) -> None:
    """Show nothing; the cells of an experiment are its progress."""
