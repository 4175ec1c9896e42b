"""Re-initialisation: what is new, what keeps every bit, and where the random numbers come from."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from dynprobe.finetune.anatomy import block_stacks
from dynprobe.finetune.reinit import reinitialise

POOLED = ("bert",)
FAMILIES = (
    "bert", "roberta", "electra", "distilbert", "mpnet", "deberta", "deberta-v2", "gpt2", "llama", "t5", "bart",
)  # fmt: skip


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Make every weight differ from any initialisation, as pretraining does; return copies."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 + torch.rand(parameter.shape, generator=generator)
            parameter._is_hf_initialized = True  # transformers then skips it in its own initialisation
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("n_blocks", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_top_blocks_and_the_pooler_change(
    family: str, n_blocks: int, classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model = classifier_of(family)
    before = trained(model)
    names = reinitialise(model, n_blocks=n_blocks)
    wanted = {key for key in before if any(key.startswith(f"{name}.") for name in names)}
    assert changed(model, before) == wanted, "each of its weights is new, no other bit is"
    blocks = [name for name in names if not name.endswith("pooler")]
    assert [int(name.rpartition(".")[2]) for name in blocks] == [1, 0][:n_blocks]
    assert all("encoder.block" not in name and "encoder.layers" not in name for name in blocks), "the decoder's"
    assert len(names) - len(blocks) == (family in POOLED)
    assert bool(model.eval()(**batch()).logits.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_distributed_as_the_architecture_initialises_them(
    family: str, classifier_of: Callable[..., Any]
) -> None:
    """The same parameter of a fresh model has the same spread, constants are the same constants."""
    model = classifier_of(family)
    fresh = dict(block_stacks(classifier_of(family, seed=4))[-1].blocks[-1].named_parameters())
    trained(model)
    reinitialise(model, n_blocks=1)
    for name, parameter in block_stacks(model)[-1].blocks[-1].named_parameters():
        n, spread, wanted = parameter.numel(), float(parameter.detach().std(correction=0)), fresh[name].detach()
        # Four standard errors of the ratio of two standard deviations of n normal numbers.
        assert spread == pytest.approx(float(wanted.std(correction=0)), rel=4 / math.sqrt(n), abs=1e-12), name
        if spread == 0:
            assert torch.equal(parameter, wanted), name


class TestBert:
    def big(self) -> Any:
        torch.manual_seed(0)
        return tf.BertForSequenceClassification(
            tf.BertConfig(
                vocab_size=64, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256,
                initializer_range=0.02,
            )
        )  # fmt: skip

    @pytest.mark.parametrize("as_released", [True, False])
    def test_normal_with_002(self, as_released: bool) -> None:
        model = self.big()
        trained(model)
        reinitialise(model, n_blocks=2, as_released=as_released)
        for block in (model.bert.encoder.layer[1], model.bert.encoder.layer[2], model.bert.pooler):
            for name, part in block.named_modules():
                if isinstance(part, torch.nn.Linear):
                    assert float(part.weight.detach().std()) == pytest.approx(0.02, rel=0.05), name
                    assert float(part.weight.detach().abs().max()) > 3 * 0.02, "not truncated"
                    assert not bool(part.bias.any())
                elif isinstance(part, torch.nn.LayerNorm):
                    assert torch.equal(part.weight, torch.ones(128))
                    assert not bool(part.bias.any())

    def test_the_random_state_stays_and_the_seed_decides(self) -> None:
        weights = []
        for n_blocks, seed in ((1, 5), (3, 5), (1, 6)):
            model = self.big()
            torch.manual_seed(1)
            reinitialise(model, n_blocks=n_blocks, seed=seed)
            after = torch.rand(3)
            torch.manual_seed(1)
            assert torch.equal(after, torch.rand(3)), "data order and dropout do not shift"
            weights.append((model.bert.encoder.layer[2].output.dense.weight, model.bert.pooler.dense.weight))
        assert torch.equal(weights[0][0], weights[1][0]), "the top block does not depend on how many follow"
        assert torch.equal(weights[0][1], weights[1][1])
        assert not torch.equal(weights[0][0], weights[2][0])
        model = self.big()
        reinitialise(model, n_blocks=3)
        blocks = [block.output.dense.weight for block in model.bert.encoder.layer]
        assert not torch.equal(blocks[0], blocks[1])

    def test_the_published_code_shifts_the_random_state(self) -> None:
        after = []
        for n_blocks in (1, 2):
            model = self.big()
            torch.manual_seed(1)
            reinitialise(model, n_blocks=n_blocks, as_released=True)
            after.append(torch.rand(3))
        assert not torch.equal(*after)

    def test_other_types_and_wrappers(self) -> None:
        single, half = self.big(), self.big().to(torch.bfloat16)
        for model in (single, half):
            reinitialise(model, n_blocks=1, seed=3)
        ours, theirs = (model.bert.encoder.layer[2].output.dense.weight for model in (single, half))
        assert theirs.dtype == torch.bfloat16
        assert torch.equal(ours.to(torch.bfloat16), theirs)
        frozen = self.big().requires_grad_(False)
        reinitialise(frozen, n_blocks=1)
        assert not any(parameter.requires_grad for parameter in frozen.parameters())

    def test_pooler(self) -> None:
        model = self.big()
        before = trained(model)
        assert reinitialise(model, n_blocks=1, pooler=False) == ("bert.encoder.layer.2",)
        assert not any("pooler" in name for name in changed(model, before))
        assert reinitialise(model, n_blocks=0, pooler=True) == ("bert.pooler",)
        assert reinitialise(model.bert, n_blocks=1) == ("pooler", "encoder.layer.2")


def test_gpt2_scales_what_writes_into_the_residual_stream_and_the_published_code_leaves_it(
    classifier_of: Callable[..., Any],
) -> None:
    model = classifier_of("gpt2")
    before = trained(model)
    reinitialise(model, n_blocks=1, as_released=True)
    assert {name.split(".")[3] for name in changed(model, before)} == {"ln_1", "ln_2"}
    reinitialise(model, n_blocks=1)
    block = model.transformer.h[1]
    ratio = float(block.mlp.c_proj.weight.detach().std() / block.mlp.c_fc.weight.detach().std())
    n = block.mlp.c_fc.weight.numel()
    assert ratio == pytest.approx(1 / math.sqrt(2 * 2), rel=4 / math.sqrt(n))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_blocks": 3}, "`n_blocks` must be at most 2, the blocks of bert.encoder.layer; got 3"),
            ({"n_blocks": -1}, "`n_blocks` must be a whole number of at least 0; got -1"),
            ({"n_blocks": True}, "`n_blocks` must be a whole number"),
            ({"n_blocks": 1.5}, "`n_blocks` must be a whole number of at least 0; got 1.5"),
        ],
    )
    def test_number_of_blocks(self, options: dict[str, Any], message: str, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        before = trained(model)
        with pytest.raises(ValueError, match=message):
            reinitialise(model, **options)
        assert changed(model, before) == set()

    @pytest.mark.parametrize("family", [family for family in FAMILIES if family not in POOLED])
    def test_no_pooler(self, family: str, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of(family)
        with pytest.raises(ValueError, match="`pooler` must be False or None for a model without a pretrained pooler"):
            reinitialise(model, n_blocks=1, pooler=True)
        names = reinitialise(model, n_blocks=1, pooler=True, as_released=True)
        assert not any("pooler" in name for name in names), "the published switch does nothing here"

    def test_shared_blocks(self) -> None:
        config = tf.AlbertConfig(
            num_hidden_layers=2, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=24,
            vocab_size=64, num_labels=2,
        )  # fmt: skip
        model = tf.AlbertForSequenceClassification(config)
        with pytest.raises(ValueError, match=r"blocks with weights of their own.*2 layers share"):
            reinitialise(model, n_blocks=1)
        assert reinitialise(model, n_blocks=0) == ("albert.pooler",)

    def test_an_architecture_that_leaves_a_weight_out(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        model.bert.encoder.layer[1].gate = torch.nn.Parameter(torch.ones(2))
        with pytest.raises(ValueError, match=r"initialise every weight of bert.encoder.layer.1 itself.*\['gate'\]"):
            reinitialise(model, n_blocks=1)
