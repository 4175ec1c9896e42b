"""A small Trainer on token sequences, made alike for every test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 100, size=12) for _ in range(n)]
    return [{"input_ids": r.tolist(), "attention_mask": [1] * 12, "labels": int(r[0] % 3)} for r in ids]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A Trainer of a tiny BERT; options go to TrainingArguments, `data` to the Trainer."""

    def make(data: dict[str, Any] | None = None, callbacks: list[Any] | None = None, **options: Any) -> Trainer:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=3,
            max_position_embeddings=32,
        )
        settings = {
            "output_dir": str(tmp_path / "checkpoints"),
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 4,
            "dataloader_pin_memory": False,
            **options,
        }
        sets = {"train_dataset": rows(64, 0), "eval_dataset": rows(40, 1), **(data or {})}
        return Trainer(
            BertForSequenceClassification(config), TrainingArguments(**settings), callbacks=callbacks, **sets
        )

    return make
