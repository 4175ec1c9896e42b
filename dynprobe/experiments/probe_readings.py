"""What an experiment keeps of the probe tasks of a run: the accuracy of the linear probes, layer by layer."""

from typing import Any

from dynprobe.analysis import Moment
from dynprobe.analysis.probe_suite import probe_suite
from dynprobe.run import Run

_BY_LAYER = "knowledge_by_layer"


def read_probes(run: Run, *, with_start: bool) -> dict[str, Any]:
    """Accuracy of linear probes on each probe task, at the end of a training and at its start.

    Parameters
    ----------
    run
        A run with probe tasks.
    with_start
        Whether to read the first snapshot, too; in a chain it is the last of the training before.

    Returns
    -------
    dict
        Task to ``chance`` (share of the commonest test label), ``n`` (test examples), and ``start`` and ``end``: kind of pooled
        vector to the accuracy of layers 0, 1, …; with the start also ``random``, the same of an encoder with random weights,
        where there is one. A task that cannot be probed has ``status`` and ``reason`` instead.
    """
    ends = {"start": run.steps[0], "end": run.steps[-1]} if with_start else {"end": run.steps[-1]}
    table = probe_suite([Moment(run, run.name, step) for step in ends.values()], control=False).frame
    read: dict[str, Any] = {}
    for task in run.probe_tasks:
        rows = table[(table["metric"] == _BY_LAYER) & (table["group"] == task)]
        measured = rows[rows["status"] == "measured"].sort_values("layer")
        if measured.empty:
            refused = table[table["group"] == task].iloc[0]
            read[task] = {"status": str(refused["status"]), "reason": str(refused["reason"])}
            continue
        read[task] = {"chance": float(measured["chance"].iloc[0]), "n": int(measured["n"].iloc[0])}
        for name, step in ends.items():
            of_step = measured[measured["step_a"] == step]
            read[task][name] = {str(kind): list(own["value"]) for kind, own in of_step.groupby("position")}
            if name == "start" and of_step["reference"].notna().any():
                read[task]["random"] = {str(kind): list(own["reference"]) for kind, own in of_step.groupby("position")}
    return read
