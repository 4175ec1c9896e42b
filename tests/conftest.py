"""Small real runs for tests: two-layer models with random weights, captured as a user's would be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet


def tiny_classifier(seed: int = 0, *, n_layers: int = 2, d_model: int = 32) -> BertForSequenceClassification:
    """A BERT classifier with random weights and three classes."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        max_position_embeddings=64,
    )
    return BertForSequenceClassification(config)


def tiny_probe_set(n_examples: int = 40, seed: int = 0) -> ProbeSet:
    """Labelled token sequences of 3 to 19 tokens; the label follows from the first token."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 100, size=rng.integers(3, 20)) for _ in range(n_examples)]
    return ProbeSet.from_features(
        [{"input_ids": row} for row in ids],
        labels=np.array([int(row[0]) % 3 for row in ids]),
        label_names=("zero", "one", "two"),
    )


def train_a_little(model: torch.nn.Module, probe: ProbeSet, n_steps: int, seed: int) -> None:
    """A few optimizer steps on the probe examples themselves: enough to move every weight."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = {name: torch.as_tensor(np.array(value)) for name, value in probe.inputs.items()}
    labels = torch.as_tensor(np.array(probe.labels))
    model.train()
    for _ in range(n_steps):
        rows = torch.randperm(len(labels), generator=generator)[:8]
        loss = model(**{name: value[rows] for name, value in inputs.items()}, labels=labels[rows]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a run directory of a tiny classifier; `seed` decides its training, `probe` its probe set."""

    def make(
        name: str,
        *,
        seed: int = 0,
        steps: tuple[int, ...] = (0, 2, 6),
        probe: ProbeSet | None = None,
        settings: CaptureSettings | None = None,
    ) -> Path:
        path = tmp_path_factory.mktemp("runs") / name
        model, probe = tiny_classifier(), probe or tiny_probe_set()
        options = {"max_steps": steps[-1], "facts": {"seed": seed}, "settings": settings}
        with Recorder(model, probe, path, **options) as recorder:
            done = 0
            for step in steps:
                train_a_little(model, probe, step - done, seed)
                done = step
                recorder.snapshot(step)
                recorder.log({"step": step, "loss": 1.0 / (1 + step)})
        return path

    return make


@pytest.fixture(scope="session")
def run_a(make_run: Callable[..., Path]) -> Path:
    """A captured run."""
    return make_run("run-a", seed=1)


@pytest.fixture(scope="session")
def run_b(make_run: Callable[..., Path]) -> Path:
    """The same recipe with another seed."""
    return make_run("run-b", seed=2)


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """A tiny pretrained model with its tokenizer, as a folder."""
    path = tmp_path / "model"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "an",
        "the",
        "of",
        "or",
        "in",
        "to",
        "and",
        "that",
        "is",
        "for",
        "with",
        "by",
    ]
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys([*words, *letters])), encoding="utf-8")
    BertTokenizerFast(str(vocabulary)).save_pretrained(path)
    config = BertConfig(
        vocab_size=len(set(words + letters)), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    return path
