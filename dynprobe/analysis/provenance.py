"""Where the numbers of a comparison come from."""

import sys
from collections.abc import Mapping
from typing import Any

from dynprobe.run import Run

_MODEL_FACTS = ("name", "model_class", "model_type", "n_parameters", "n_trainable")
_MANIFEST_FACTS = ("created", "command", "versions", "dtype", "attention_implementation", "threads", "max_steps")


def provenance(runs: Mapping[str, Run], options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able facts: what the runs are, what their trainers logged, how they were compared, and by which version.

    Parameters
    ----------
    runs
        Name in the results to run.
    options
        Options of the analysis.
    """
    return {
        "runs": {name: run_facts(run) for name, run in runs.items()},
        "scalars": {name: run.scalars for name, run in runs.items()},
        "options": dict(options),
        "dynprobe": sys.modules["dynprobe"].__version__,
    }


def run_facts(run: Run) -> dict[str, Any]:
    """What a run says about itself, as far as it says so."""
    model, training, probe = run.manifest.get("model", {}), run.manifest.get("training"), run.probe_set
    facts: dict[str, Any] = {
        "path": str(run.path),
        "model": model.get("name"),
        "model_facts": {key: model[key] for key in _MODEL_FACTS if key in model},
        "probe_fingerprint": probe.fingerprint,
        "label_fingerprint": probe.label_fingerprint,
        "probe_origin": run.manifest.get("probe_origin", probe.origin),
        "n_examples": probe.n_examples,
        "steps": list(run.steps),
    }
    facts |= {key: run.manifest[key] for key in _MANIFEST_FACTS if key in run.manifest}
    if isinstance(training, Mapping):
        facts |= {"seed": training.get("seed"), "training": dict(training)}
    return facts
