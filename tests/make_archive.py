"""Writes the archived run directory of the current format; run once per format version, never to mend a failing test."""

import json
from pathlib import Path

import torch
from conftest import tiny_classifier, tiny_probe_set, train_a_little  # type: ignore[import-not-found]

from dynprobe.capture.recorder import Recorder
from dynprobe.run import open_run
from dynprobe.storage.layout import FORMAT_VERSION

FOLDER = Path(__file__).parent / "archive"


def main() -> None:
    """Capture a tiny model at two steps, and note what a reader must find in the files."""
    torch.set_num_threads(1)
    path = FOLDER / f"run-format-{FORMAT_VERSION}"
    probe = tiny_probe_set(8)
    model = tiny_classifier(d_model=16)
    with Recorder(model, probe, path, max_steps=3, facts={"seed": 0}) as recorder:
        recorder.snapshot(0)
        train_a_little(model, probe, 3, seed=0)
        recorder.snapshot(3)
        recorder.log({"step": 3, "loss": 1.0})
    run = open_run(path)
    found = {
        "fingerprint": run.probe_set.fingerprint,
        "label_fingerprint": run.probe_set.label_fingerprint,
        "steps": list(run.steps),
        "sums": {
            str(snapshot.step): {
                "hidden_states": [float(snapshot.hidden_states(k).astype("f8").sum()) for k in snapshot.layers()],
                "attentions": [
                    float(snapshot.attentions(k)[0].astype("f8").sum()) for k in snapshot.attention_layers()
                ],
                "pooled": float(snapshot.pooled("first", 2).astype("f8").sum()),
                "outputs": float(snapshot.outputs().values.astype("f8").sum()),  # type: ignore[union-attr]
            }
            for snapshot in run
        },
    }
    (FOLDER / f"run-format-{FORMAT_VERSION}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
