"""Every format version that was ever written can still be read, with the same numbers."""

import json
from pathlib import Path

import pytest

from dynprobe.analysis import compare
from dynprobe.run import open_run
from dynprobe.storage.layout import FORMAT_VERSION
from dynprobe.storage.verify import verify_run

ARCHIVE = Path(__file__).parent / "archive"
VERSIONS = range(1, FORMAT_VERSION + 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_archived_run_reads_as_when_it_was_written(version: int) -> None:
    run = open_run(ARCHIVE / f"run-format-{version}")
    expected = json.loads((ARCHIVE / f"run-format-{version}.json").read_text(encoding="utf-8"))
    assert run.probe_set.fingerprint == expected["fingerprint"]
    assert run.probe_set.label_fingerprint == expected["label_fingerprint"]
    assert list(run.steps) == expected["steps"]
    for snapshot in run:
        sums = expected["sums"][str(snapshot.step)]
        hidden = [snapshot.hidden_states(k).astype("f8").sum() for k in snapshot.layers()]
        attention = [snapshot.attentions(k)[0].astype("f8").sum() for k in snapshot.attention_layers()]
        # The order of a sum, and so its last digits, depends on the processor.
        assert hidden == pytest.approx(sums["hidden_states"], rel=1e-12)
        assert attention == pytest.approx(sums["attentions"], rel=1e-12)
        assert snapshot.pooled("first", 2).astype("f8").sum() == pytest.approx(sums["pooled"], rel=1e-12)
        outputs = snapshot.outputs()
        assert outputs is not None
        assert outputs.values.astype("f8").sum() == pytest.approx(sums["outputs"], rel=1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_archived_run_is_intact_and_can_be_compared(version: int) -> None:
    path = ARCHIVE / f"run-format-{version}"
    assert [problem for check in verify_run(path) for problem in check.problems] == []
    result = compare(open_run(path), open_run(path), metrics=["attention_js_divergence", "prediction_flip_rate"])
    between = result.table[result.table["comparison"] == "between"]
    assert (between["value"].dropna() == 0).all()
    assert len(between)
