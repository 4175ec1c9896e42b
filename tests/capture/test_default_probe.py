"""The probe set when nothing is said: from whatever kind of data a trainer has."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from transformers import Trainer, TrainingArguments

from dynprobe.capture.default_probe import probe_set_from_trainer
from dynprobe.errors import ProbeSetError

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 256,
}
BOTH: dict[str, Any] = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def trainer_of(tmp_path: Any) -> Callable[..., Trainer]:
    """A Trainer of a model on some data, evaluation data if not said otherwise."""

    def make(model: nn.Module, data: Any, **more: Any) -> Trainer:
        arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
        return Trainer(model, arguments, **{"train_dataset": data, "eval_dataset": data, **more})

    return make


def bert(kind: Any = tf.BertForSequenceClassification, **changes: Any) -> nn.Module:
    return kind(tf.BertConfig(**{**SMALL, **changes}))


def texts(n: int = 12, *, shortest: int = 3) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 50, size=shortest + i % 5).tolist() for i in range(n)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([i % 2 for i in range(12)], np.int64),
        ([i / 7 for i in range(12)], np.float64),
        ([[i % 2] for i in range(12)], np.int64),
        ([torch.tensor(i % 2) for i in range(12)], np.int64),
        ([[1] * 4 for _ in range(12)], None),
        ([None] * 12, None),
        (["a"] * 12, None),
        ([0] * 11 + [None], None),
    ],
    ids=["class", "number", "list of one", "tensor", "per token", "none", "text", "one missing"],
)
def test_kinds_of_labels(labels: list[Any], expected: Any, trainer_of: Callable[..., Trainer]) -> None:
    data = [{"input_ids": ids, "labels": label} for ids, label in zip(texts(), labels, strict=True)]
    probe = probe_set_from_trainer(trainer_of(bert(), data))
    assert probe.n_examples == 12
    if expected is None:
        assert probe.labels is None
    else:
        assert probe.labels is not None
        assert probe.labels.dtype == expected
        assert len(np.unique(probe.labels)) > 1


def test_names_of_classes_belong_to_classes(trainer_of: Callable[..., Trainer]) -> None:
    model = bert(id2label={0: "no", 1: "yes"})
    rows = texts()
    whole = [{"input_ids": ids, "labels": i % 2} for i, ids in enumerate(rows)]
    assert probe_set_from_trainer(trainer_of(model, whole)).label_names == ("no", "yes")
    numbers = [{"input_ids": ids, "labels": i % 2 + 0.5} for i, ids in enumerate(rows)]
    assert probe_set_from_trainer(trainer_of(model, numbers)).label_names is None
    more = [{"input_ids": ids, "labels": i % 3} for i, ids in enumerate(rows)]
    assert probe_set_from_trainer(trainer_of(model, more)).label_names is None, "a class without a name"


def test_at_most_512_examples_of_128_tokens(trainer_of: Callable[..., Trainer]) -> None:
    data = [{"input_ids": [5 + i % 40, 6 + i // 40, *[7] * 198], "labels": i % 2} for i in range(700)]
    probe = probe_set_from_trainer(trainer_of(bert(), data))
    assert probe.n_examples == 512
    assert probe.inputs["input_ids"].shape == (512, 128)
    assert np.bincount(probe.labels).tolist() == [256, 256]


def test_only_what_the_forward_takes_is_kept(trainer_of: Callable[..., Trainer]) -> None:
    data = [{"input_ids": ids, "token_type_ids": [0] * len(ids), "idx": 3, "note": "text"} for ids in texts()]
    probe = probe_set_from_trainer(trainer_of(bert(), data))
    assert sorted(probe.inputs) == ["attention_mask", "input_ids", "token_type_ids"]
    assert probe.texts == (("text",),) * 12


def test_rows_that_are_no_mappings_go_through_the_collator(trainer_of: Callable[..., Trainer]) -> None:
    data = [(ids, i % 2) for i, ids in enumerate(texts())]

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row[0] for row in batch])
        return {"input_ids": ids, "labels": torch.tensor([row[1] for row in batch])}

    probe = probe_set_from_trainer(trainer_of(bert(), data, data_collator=collate))
    assert probe.n_examples == 12
    assert sorted(set(probe.labels.tolist())) == [0, 1]
    assert probe.texts is None


def test_a_data_set_with_random_parts_leaves_the_random_states_alone(trainer_of: Callable[..., Trainer]) -> None:
    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {
                "input_ids": [5 + index, int(torch.randint(5, 50, (1,))), int(np.random.randint(5, 50))],
                "labels": index % 2,
            }

    trainer = trainer_of(bert(), Noisy())
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())
    probe_set_from_trainer(trainer)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_translation_reads_its_target_moved_by_one(trainer_of: Callable[..., Trainer]) -> None:
    model = tf.BartForConditionalGeneration(tf.BartConfig(**BOTH))
    data = [{"input_ids": ids, "labels": [*ids[:3], -100, -100]} for ids in texts()]
    probe = probe_set_from_trainer(trainer_of(model, data))
    assert probe.stacks == ("encoder", "decoder")
    assert probe.real["decoder"].sum(axis=1).tolist() == [3] * 12, "ignored labels are no tokens"
    first = {tuple(ids[ids > 2][:2]) for ids in probe.inputs["decoder_input_ids"]}
    assert first == {tuple(ids[:2]) for ids in texts()}
    assert set(probe.inputs["decoder_input_ids"][:, 0]) == {2}


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_classifier_with_a_decoder_reads_its_input_twice(kind: str, trainer_of: Callable[..., Trainer]) -> None:
    torch.manual_seed(0)
    model: Any
    if kind == "bart":
        model = tf.BartForSequenceClassification(tf.BartConfig(**BOTH, num_labels=2))
    else:
        sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        model = tf.T5ForSequenceClassification(tf.T5Config(**sizes, decoder_start_token_id=0, eos_token_id=2))
    data = [{"input_ids": [*ids, 2], "labels": i % 2} for i, ids in enumerate(texts())]
    probe = probe_set_from_trainer(trainer_of(model, data))
    assert probe.labels is not None
    for row in range(3):  # alone, without padding: as the model itself would move its input
        n = int(probe.real["encoder"][row].sum())
        ids = torch.as_tensor(np.array(probe.inputs["input_ids"][row : row + 1, :n]))
        own = torch.as_tensor(np.array(probe.inputs["decoder_input_ids"][row : row + 1, :n]))
        with torch.no_grad():
            assert torch.equal(model.eval()(input_ids=ids).logits, model(input_ids=ids, decoder_input_ids=own).logits)


def test_an_encoder_decoder_without_a_target_is_refused(trainer_of: Callable[..., Trainer]) -> None:
    model = tf.BartForConditionalGeneration(tf.BartConfig(**BOTH))
    with pytest.raises(
        ProbeSetError, match=r"needs `decoder_input_ids` or `labels` in each example; got \['input_ids'\]"
    ):
        probe_set_from_trainer(trainer_of(model, [{"input_ids": ids} for ids in texts()]))


def test_an_empty_data_set_is_refused(trainer_of: Callable[..., Trainer]) -> None:
    with pytest.raises(ProbeSetError, match="must hold at least one example; got none"):
        probe_set_from_trainer(trainer_of(bert(), []))
