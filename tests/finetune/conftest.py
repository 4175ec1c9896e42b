"""Two-block classifiers of every family, with random weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
CONFIGS: dict[str, Callable[..., Any]] = {
    "bert": lambda **k: tf.BertConfig(**{**SMALL, **k}),
    "roberta": lambda **k: tf.RobertaConfig(**{**SMALL, **k}),
    "electra": lambda **k: tf.ElectraConfig(**{**SMALL, "embedding_size": 8, **k}),
    "distilbert": lambda **k: tf.DistilBertConfig(
        vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40, **k
    ),
    "mpnet": lambda **k: tf.MPNetConfig(**{**SMALL, **k}),
    "deberta": lambda **k: tf.DebertaConfig(**{**SMALL, **DISENTANGLED, **k}),
    "deberta-v2": lambda **k: tf.DebertaV2Config(**{**SMALL, **DISENTANGLED, **k}),
    "gpt2": lambda **k: tf.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, **k
    ),
    "llama": lambda **k: tf.LlamaConfig(**{**SMALL, "num_key_value_heads": 1, **k}),
    "t5": lambda **k: tf.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0, decoder_start_token_id=0,
        eos_token_id=2, **k,
    ),
    "bart": lambda **k: tf.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, **k,
    ),
}  # fmt: skip


@pytest.fixture
def classifier_of() -> Callable[..., Any]:
    """Make a classifier with three labels of a family by name; options go to its configuration."""

    def make(family: str, seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        return tf.AutoModelForSequenceClassification.from_config(CONFIGS[family](**{"num_labels": 3, **options}))

    return make


@pytest.fixture
def batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Make a padded batch of token sequences with labels; each row ends in the end-of-text token 2."""

    def make(n: int = 6, length: int = 7, *, seed: int = 0, left: bool = False) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, 64, (n, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(n):
            pads = row % 3
            real = ids[row, : length - pads].clone()
            real[-1] = 2
            ids[row], mask[row] = 0, 0
            place = slice(pads, None) if left else slice(0, length - pads)
            ids[row, place], mask[row, place] = real, 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.sum(1) % 3}

    return make
