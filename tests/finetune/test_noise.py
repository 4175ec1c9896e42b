"""Noise reaches the word embeddings, once, of every family; padding gets none; nothing stays on the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from dynprobe.finetune.embeddings import perturbed, real_tokens, require_resolution, word_embeddings
from dynprobe.finetune.r3f import R3F, noise

CLASSIFIERS = (
    "bert",
    "roberta",
    "electra",
    "distilbert",
    "mpnet",
    "deberta",
    "deberta-v2",
    "gpt2",
    "llama",
    "t5",
    "bart",
)
GENERATORS = ("gpt2 generator", "llama generator", "gemma generator", "t5 generator", "bart generator")
SIZES = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ROPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
}


def generator_of(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2 generator":
        return tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, **SIZES))
    if name == "llama generator":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ROPE, **SIZES))
    if name == "gemma generator":  # scales its embeddings by the root of the width
        return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**ROPE, head_dim=8, sliding_window=8, **SIZES))
    if name == "t5 generator":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        return tf.T5ForConditionalGeneration(tf.T5Config(**sizes, decoder_start_token_id=0, **SIZES))
    halves = {f"{half}_{what}": 2 for half in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40, **halves}
    config = tf.BartConfig(scale_embedding=True, decoder_start_token_id=2, **sizes, **SIZES)
    return tf.BartForConditionalGeneration(config)


@pytest.fixture
def make(classifier_of: Callable[..., Any]) -> Callable[[str], Any]:
    return lambda name: (generator_of(name) if name in GENERATORS else classifier_of(name)).eval()


def first_block(stack: Any) -> nn.Module:
    lists = [module for module in stack.modules() if isinstance(module, nn.ModuleList)]
    return lists[0][0]  # type: ignore[no-any-return]


@contextmanager
def seen_by(block: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handle = block.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    handle.remove()


def distinct_tokens(*, left: bool) -> dict[str, Tensor]:
    """Every real token but the last of a row stands once in the batch, so that a row of the table is a position."""
    ids, mask = torch.zeros(2, 4, 6, dtype=torch.long)
    for row in range(4):
        n = 6 - row % 3
        place = slice(6 - n, None) if left else slice(0, n)
        ids[row, place] = torch.tensor([*range(5 + 6 * row, 4 + 6 * row + n), 2])
        mask[row, place] = 1
    labels = torch.where(mask.bool(), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def inputs_for(model: Any, *, left: bool = False) -> dict[str, Tensor]:
    inputs = distinct_tokens(left=left)
    if "Classification" in type(model).__name__:
        inputs["labels"] = torch.tensor([0, 1, 2, 0])
    return inputs


def stacks(model: Any) -> list[Any]:
    """The stack that reads the noise, then the one that must not."""
    return [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]


@pytest.mark.parametrize("name", CLASSIFIERS + GENERATORS)
@pytest.mark.parametrize("left", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_noise_reaches_the_first_block_once(name: str, left: bool, make: Callable[[str], Any]) -> None:
    model = make(name)
    inputs = inputs_for(model, left=left)
    embeddings, mask = word_embeddings(model), real_tokens(inputs)
    table: Any = embeddings.table
    delta = (
        0.1 * torch.randn(*mask.shape, embeddings.width, generator=torch.Generator().manual_seed(1)) * mask[..., None]
    )
    delta[inputs["input_ids"] == 2] = 0.05  # this token stands in every row
    with seen_by(first_block(stacks(model)[0])) as seen, torch.no_grad():
        model(**inputs)
        with perturbed(embeddings, delta):
            model(**inputs)
        for token in range(
            2, 64
        ):  # the same noise put into the table: positions, scaling and norms are the model's own
            where = inputs["input_ids"] == token
            if bool(where.any()):
                table.weight[token] += delta[where][0]
        model(**inputs)
    clean, noisy, expected = seen
    real = mask.bool()
    torch.testing.assert_close(noisy[real], expected[real])
    assert bool((noisy != clean)[real].any(dim=-1).all())  # at every token
    assert torch.equal(noisy[~real], clean[~real])  # and nowhere else


@pytest.mark.parametrize("name", ["t5", "bart", "t5 generator", "bart generator"])
def test_decoders_read_words_without_noise(name: str, make: Callable[[str], Any]) -> None:
    model = make(name)
    inputs = inputs_for(model)
    mask, embeddings = real_tokens(inputs), word_embeddings(model)
    with seen_by(first_block(stacks(model)[1])) as seen, torch.no_grad():
        model(**inputs)
        with perturbed(embeddings, torch.ones(*mask.shape, embeddings.width)):
            model(**inputs)
    assert torch.equal(*seen)


@pytest.mark.parametrize("name", CLASSIFIERS + GENERATORS)
def test_whole_r3f_step(name: str, make: Callable[[str], Any]) -> None:
    model = make(name).train()
    inputs = inputs_for(model)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    plain = model(**inputs)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    step = R3F(eps=1e-2, dropout="shared").prepare(model).loss(model, inputs)
    step.loss.backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(step.task, plain.loss.detach())  # the clean pass is that of standard training, bit by bit
    assert float(step.terms["divergence"]) > 0
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS + GENERATORS)
def test_noise_of_size_zero_changes_nothing(name: str, make: Callable[[str], Any]) -> None:
    model = make(name)
    inputs = inputs_for(model, left=True)  # positions come from the mask or the ids
    embeddings = word_embeddings(model)
    with torch.no_grad():
        clean = model(**inputs).logits
        with perturbed(embeddings, torch.zeros(4, 6, embeddings.width)):
            noisy = model(**inputs).logits
    assert torch.equal(clean, noisy)


def test_scaled_embeddings_get_noise_in_units_of_the_table(make: Callable[[str], Any]) -> None:
    assert word_embeddings(make("bart generator")).scale == 4.0  # the root of the width 16
    assert word_embeddings(make("bart")).scale == 1.0
    assert word_embeddings(make("gemma generator")).scale == pytest.approx(4.0)


def test_distributions_of_noise() -> None:
    n = 200_000
    flat = noise((n,), 0.3, "uniform", torch.Generator().manual_seed(0))
    assert float(flat.abs().max()) <= 0.3
    bell = noise((n,), 0.3, "normal", torch.Generator().manual_seed(0))
    for values, std in ((flat, 0.3 / 3**0.5), (bell, 0.3)):
        assert abs(float(values.mean())) < 5 * std / n**0.5
        assert float(values.std()) == pytest.approx(std, rel=5 / n**0.5)


def test_gradient_flows_to_the_noise_and_the_table(make: Callable[[str], Any]) -> None:
    model = make("bert")
    inputs, embeddings = inputs_for(model), word_embeddings(model)
    table: Any = embeddings.table
    delta = torch.zeros(4, 6, 16, requires_grad=True)
    for detached in (False, True):
        with perturbed(embeddings, delta, detached=detached):
            logits = model(**inputs).logits
        to_noise, to_table = torch.autograd.grad(logits.sum(), [delta, table.weight], allow_unused=True)
        assert bool((to_noise[inputs["attention_mask"] == 1] != 0).any())
        assert (to_table is None) == detached


def test_models_without_words_are_refused() -> None:
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "image_size": 8,
    }
    images = tf.ViTForImageClassification(tf.ViTConfig(patch_size=4, **sizes))
    with pytest.raises(ValueError, match=r"must look up word embeddings .*ViTForImageClassification.*such as 'rdrop'"):
        R3F().prepare(images)
    with pytest.raises(ValueError, match="must be a transformers model"):
        R3F().prepare(nn.Linear(2, 2))


def test_noise_that_rounding_swallows_is_refused(make: Callable[[str], Any]) -> None:
    model = make("bert").to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"`eps` must be .* or more where embeddings are bfloat16, or rounding .* got 1e-05"
    ):
        R3F().prepare(model)
    require_resolution(word_embeddings(model), 0.01, name="eps")
    R3F().prepare(make("bert"))


def test_a_pass_that_does_not_look_words_up_is_noticed(make: Callable[[str], Any]) -> None:
    model = make("bert")
    inputs, embeddings = inputs_for(model), word_embeddings(model)
    delta = torch.zeros(4, 6, 16)
    with pytest.raises(RuntimeError, match=r"exactly once in a pass; got 0 times"), perturbed(embeddings, delta):
        model(inputs_embeds=torch.zeros(4, 6, 16), attention_mask=inputs["attention_mask"])
    with pytest.raises(RuntimeError, match=r"exactly once in a pass; got 2 times"), perturbed(embeddings, delta):
        _ = [model(**inputs) for _ in range(2)]
    with pytest.raises(ValueError, match=r"noise of shape \(4, 6, 16\) must fit .*got \(4, 5, 16\)"):  # noqa: SIM117
        with perturbed(embeddings, delta):
            model(input_ids=inputs["input_ids"][:, :5])
    assert not embeddings.table._forward_hooks  # gone after the errors too


def test_inputs_that_cannot_be_perturbed(make: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"must hold `input_ids` .*got \['inputs_embeds'\]"):
        real_tokens({"inputs_embeds": torch.zeros(1, 2, 3)})
    with pytest.raises(
        ValueError, match=r"`attention_mask` must have the shape of `input_ids`, \(2, 3\); got \(2, 1, 3, 3\)"
    ):
        real_tokens({"input_ids": torch.zeros(2, 3), "attention_mask": torch.ones(2, 1, 3, 3)})
    assert float(real_tokens({"input_ids": torch.zeros(2, 3, dtype=torch.long)}).sum()) == 6
