"""IsoBN, batch norm as its baseline, and putting either before a classifier."""

import copy
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

from dynprobe.errors import DynprobeError
from dynprobe.finetune.batch_norm import BatchNormBaseline
from dynprobe.finetune.insertion import classifier, insert_before_classifier, remove_before_classifier
from dynprobe.finetune.isobn import IsoBN
from dynprobe.finetune.saved import restore_saved_state

# The example of four vectors: dimensions 1 and 2 say the same, 3 is half with them.
FOUR = torch.tensor([[1.0, 2, 0], [2, 4, 1], [3, 6, 0], [4, 8, 1]])
FAMILIES = {
    "bert": "classifier", "roberta": "classifier.out_proj", "electra": "classifier.out_proj", "distilbert": "classifier",
    "mpnet": "classifier.out_proj", "deberta": "classifier", "deberta-v2": "classifier", "gpt2": "score", "llama": "score",
    "t5": "classification_head.out_proj", "bart": "classification_head.out_proj",
}  # fmt: skip
PICKING = ("gpt2", "llama")


def close(x: Tensor, y: Any, *, digits: int = 6) -> bool:
    """Equal to the digits that the golden values have."""
    return torch.allclose(x, torch.as_tensor(y, dtype=x.dtype), rtol=0, atol=0.5000001 * 10**-digits)


def correlation(x: Tensor) -> Tensor:
    return torch.corrcoef(x.double().T)


class TestGolden:
    def test_full_statistics(self) -> None:
        norm = IsoBN(3, momentum=1.0)
        out = norm(FOUR)
        assert close(norm.covariance.diagonal(), [1.25, 5, 0.25])
        assert close(norm.covariance[0, 2] / (1.25 * 0.25) ** 0.5, 0.447214)
        assert close(norm.group_share(), [0.733333, 0.733333, 0.466667])
        assert close(norm.scale(), [1.185099, 0.838247, 2.218096])
        assert close(out.double().var(dim=0, correction=0).sum(), 6.498847, digits=5)  # fp32 of values up to 7

    def test_cold_start_of_the_release(self) -> None:
        norm = IsoBN(3, as_released=True)
        norm(FOUR)
        assert close(norm.group_share(), [1.0, 1, 1])
        assert close(norm.scale(), [1.226572, 0.871153, 1.814550])
        assert close(norm.std / 0.05, [1.118034, 2.236068, 0.5])

    def test_the_first_batch_debiased_is_the_batch_itself(self) -> None:
        debiased, full = IsoBN(3, momentum=0.05), IsoBN(3, momentum=1.0)
        assert torch.allclose(debiased(FOUR), full(FOUR), rtol=1e-5)

    def test_the_release_with_full_statistics_is_the_method(self) -> None:
        assert torch.allclose(IsoBN(3, momentum=1.0, as_released=True)(FOUR), IsoBN(3, momentum=1.0)(FOUR), rtol=1e-6)

    @pytest.mark.parametrize("as_released", [True, False])
    def test_running_statistics_against_the_formula_in_float64(self, as_released: bool) -> None:
        torch.manual_seed(0)
        norm, mix = IsoBN(5, as_released=as_released), torch.randn(5, 5)
        covariance, std, m = torch.zeros(5, 5).double(), torch.zeros(5).double(), 0.05
        for _ in range(7):
            x = torch.randn(16, 5) @ mix
            norm(x)
            y = x.double() - x.double().mean(0)
            covariance += m * (y.T @ y / 16 - covariance)
            std += m * (y.square().mean(0).sqrt() - std)
        c, s = covariance, std
        if not as_released:
            c = covariance / (1 - (1 - m) ** 7)
            s = c.diagonal().sqrt()
        gamma = (c / torch.outer(s, s)).clamp(-1, 1).square().mean(1)
        theta = (gamma * s + 1e-3) ** -0.5
        a = (c.diagonal().sum() / ((c.diagonal() * theta**2).sum() + 1e-3)).sqrt()
        assert torch.allclose(norm.scale().double(), a * theta, rtol=1e-5)


class TestMeasuredDifference:
    """What the cold start of the released code does; the table in METHODS.md gives these figures."""

    def batches(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        mix = torch.eye(64) + 0.12 * torch.randn(64, 64, generator=generator)
        return [torch.randn(16, 64, generator=generator) @ mix for _ in range(200)]

    def test_saturation(self) -> None:
        released, right = IsoBN(64, as_released=True), IsoBN(64)
        saturated, share = {}, {}
        off = ~torch.eye(64, dtype=torch.bool)
        for step, x in enumerate(self.batches(), start=1):
            released.update(x), right.update(x)
            if step not in (1, 20, 50, 100, 200):
                continue
            ratio = released.covariance / torch.outer(released.std, released.std)
            saturated[step] = float((ratio[off].abs() >= 1).float().mean())
            share[step] = float(released.group_share().mean() / right.group_share().mean())
        assert saturated[1] > 0.8
        assert saturated[100] == 0
        assert share[1] > 8
        assert share[20] > 1.5
        assert share[200] == pytest.approx(1, abs=0.05)


class TestLaws:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 1000), beta=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    def test_correlations_stay_and_the_total_variance_too(self, seed: int, beta: float) -> None:
        x = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.arange(1, 7)
        norm = IsoBN(6, momentum=1.0, beta=beta, eps=1e-12)
        out = norm(x)
        assert torch.allclose(correlation(out), correlation(x), atol=1e-12)
        assert float(out.var(dim=0).sum() / x.var(dim=0).sum()) == pytest.approx(1, abs=1e-5)  # statistics are fp32

    def test_permutation_sign_and_no_strength(self) -> None:
        x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2, 3, 4, 5])
        plain = IsoBN(5)
        plain(x)
        order = torch.tensor([3, 0, 4, 1, 2])
        permuted, flipped, weak = IsoBN(5), IsoBN(5), IsoBN(5, beta=0.0, eps=1e-12)
        permuted(x[:, order]), flipped(x * torch.tensor([1.0, -1, 1, 1, -1]))
        assert torch.allclose(permuted.scale(), plain.scale()[order], rtol=1e-5)
        assert torch.allclose(flipped.group_share(), plain.group_share(), rtol=1e-5)
        assert torch.allclose(weak(x), x, rtol=1e-6)

    def test_a_group_of_equals_is_shrunk_by_its_size(self) -> None:
        # Orthogonal signs: exactly uncorrelated; the first is there four times.
        signs = torch.tensor([[1.0 if (row >> bit) % 2 else -1.0 for bit in range(5)] for row in range(32)])
        x = torch.cat([signs[:, :1].expand(-1, 4), signs[:, 1:]], dim=1)
        norm = IsoBN(8, beta=0.5, eps=1e-9)
        norm(x)
        assert torch.allclose(norm.group_share(), torch.tensor([4 / 8] * 4 + [1 / 8] * 4), rtol=1e-6)
        assert float(norm.scale()[-1] / norm.scale()[0]) == pytest.approx(4**0.5, rel=1e-6)

    def test_it_makes_the_first_direction_weaker(self) -> None:
        from dynprobe.metrics import explained_variance_ratio

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 12, generator=generator) * 0.3
        x[:, :6] += 2 * torch.randn(200, 1, generator=generator)
        out = IsoBN(12)(x)
        assert float(explained_variance_ratio(out)[0]) < float(explained_variance_ratio(x)[0]) - 0.02

    def test_gradient_is_the_scale(self) -> None:
        x = FOUR.double().requires_grad_()
        norm = IsoBN(3)
        jacobian = torch.autograd.functional.jacobian(lambda value: norm(value).sum(0), x)
        assert isinstance(jacobian, Tensor)
        for out in range(3):
            for row in range(4):
                expected = torch.zeros(3).double()
                expected[out] = norm.scale()[out]
                assert torch.equal(jacobian[out, row], expected)
        assert torch.autograd.gradcheck(norm.eval(), (x,))

    def test_evaluation_goes_on_with_the_last_scale(self) -> None:
        norm = IsoBN(3)
        trained = norm(FOUR)
        assert torch.equal(norm.eval()(FOUR), trained)
        assert torch.allclose(norm(FOUR + 1) - norm(FOUR), norm.scale().expand(4, 3), rtol=1e-5)
        assert int(norm.n_updates) == 1


class TestDegenerate:
    def test_evaluation_before_training_is_the_identity(self) -> None:
        assert torch.equal(IsoBN(3).eval()(FOUR), FOUR)
        assert bool(IsoBN(3, as_released=True).eval()(FOUR).isnan().all())

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
    def test_a_dead_dimension(self, value: float) -> None:
        x = FOUR.clone()
        x[:, 1] = value
        norm, released = IsoBN(3), IsoBN(3, as_released=True)
        out = norm(x)
        assert bool(out.isfinite().all())
        assert norm.covariance[1].tolist() == [0, 0, 0]
        assert float(norm.group_share()[1]) == pytest.approx(1 / 3)
        others = IsoBN(2)
        others(x[:, [0, 2]])
        assert torch.allclose(norm.group_share()[[0, 2]] * 3, others.group_share() * 2, rtol=1e-6)
        assert bool(released(x).isnan().all())

    @pytest.mark.parametrize("rows", [0, 1])
    def test_too_few_vectors_leave_the_statistics_alone(self, rows: int) -> None:
        norm = IsoBN(3)
        assert torch.equal(norm(FOUR[:rows]), FOUR[:rows])
        norm(FOUR)
        before = copy.deepcopy(norm.state_dict())
        out = norm(FOUR[:rows])
        assert out.shape == (rows, 3)
        assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())

    def test_a_batch_that_is_not_finite_or_does_not_vary(self) -> None:
        norm = IsoBN(3)
        norm(torch.full((4, 3), torch.inf)), norm(torch.full((4, 3), torch.nan))
        assert int(norm.n_updates) == 0
        assert torch.equal(norm(FOUR[:1].expand(4, 3)), FOUR[:1].expand(4, 3))

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_half_precision(self, kind: torch.dtype) -> None:
        norm, exact = IsoBN(3).to(kind), IsoBN(3)
        big = FOUR * 300  # squares overflow float16
        out = norm(big.to(kind))
        assert out.dtype == kind
        assert norm.covariance.dtype == norm.std.dtype == torch.float32
        assert torch.allclose(out.float(), exact(big), rtol=float(torch.finfo(kind).eps))
        with torch.autocast("cpu", torch.bfloat16):
            under = IsoBN(3)
            under(FOUR)
        exact = IsoBN(3)
        exact(FOUR)
        assert torch.equal(under.covariance, exact.covariance)

    def test_a_large_mean_costs_no_digits(self) -> None:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        plain, shifted = IsoBN(4), IsoBN(4)
        moved = x + 1000
        plain(moved.double() - 1000), shifted(moved)
        assert torch.allclose(plain.covariance, shifted.covariance, rtol=1e-5, atol=1e-7)

    def test_state_dict_and_copies(self) -> None:
        norm = IsoBN(3)
        norm(FOUR)
        again = IsoBN(3)
        again.load_state_dict(norm.state_dict())
        for other in (again, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert torch.equal(other.eval()(FOUR), norm.eval()(FOUR))
            norm.train()
        assert set(norm.state_dict()) == {"covariance", "std", "n_updates"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"momentum": 0}, r"`momentum` must lie in \(0, 1\]"),
            ({"momentum": float("nan")}, r"`momentum` must lie in \(0, 1\]"),
            ({"beta": 1.5}, r"`beta` must lie in \[0, 1\]; got 1.5"),
            ({"eps": 0}, "`eps` must be above 0; got 0"),
        ],
    )
    def test_bad_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            IsoBN(3, **options)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="`n_features` must be at least 1; got 0"):
            IsoBN(0)
        with pytest.raises(ValueError, match=r"one vector of 3 numbers per example.*got \(2, 5, 3\)"):
            IsoBN(3)(torch.zeros(2, 5, 3))


class TestBatchNorm:
    def test_as_torch_does_it(self) -> None:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
        ours, theirs = BatchNormBaseline(5, momentum=1.0), nn.BatchNorm1d(5, momentum=1.0)
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)
        assert isinstance(theirs.running_var, Tensor)
        assert torch.allclose(ours.running_var, theirs.running_var)

    def test_gradient(self) -> None:
        x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
        norm, reference = BatchNormBaseline(3).double(), nn.BatchNorm1d(3).double()
        assert torch.autograd.gradcheck(norm, (x,))
        ours, theirs = (torch.autograd.grad((f(x) ** 3).sum(), x)[0] for f in (norm, reference))
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    def test_no_cold_start(self) -> None:
        x = 5 + 3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        ours, theirs = BatchNormBaseline(2), nn.BatchNorm1d(2)
        ours(x), theirs(x)
        assert torch.allclose(ours.eval()(x).std(dim=0), torch.ones(2), atol=1e-2)
        assert float(theirs.eval()(x).detach().mean()) > 2  # one batch has moved its running mean by a tenth of the way

    def test_small_last_batches(self) -> None:
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) + 3
        norm = BatchNormBaseline(4, smallest_batch=4)
        assert torch.equal(norm(x[:1]), x[:1])
        norm(x)
        known = norm.eval()(x[:3])
        before = copy.deepcopy(norm.state_dict())
        assert torch.equal(norm.train()(x[:3]), known)
        assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            nn.BatchNorm1d(4)(x[:1])

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match=r"`smallest_batch` must be at least 2.*got 1"):
            BatchNormBaseline(3, smallest_batch=1)
        with pytest.raises(ValueError, match="`eps` must be above 0; got -1"):
            BatchNormBaseline(3, eps=-1)


def without_dropout_input(model: Any, norm: nn.Module) -> list[Tensor]:
    """Inputs that the inserted module gets, as they come."""
    got: list[Tensor] = []
    norm.register_forward_pre_hook(lambda module, args: got.append(args[0].detach().clone()))
    return got


class TestInsertion:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family(self, family: str, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        model, inputs = classifier_of(family), batch()
        linear = model.get_submodule(FAMILIES[family])
        assert classifier(model) is linear
        names = set(model.state_dict())
        plain = model.eval()(**inputs).logits
        norm = IsoBN(16)
        assert insert_before_classifier(model, norm) is linear
        assert torch.equal(model(**inputs).logits, plain), "the identity before any training"
        added = set(model.state_dict()) - names
        assert added == {f"{FAMILIES[family]}.input_norm.{name}" for name in ("covariance", "std", "n_updates")}

        model.train()(**inputs).loss.backward()
        assert int(norm.n_updates) == 1
        assert float(norm.covariance.diagonal().sum()) > 0
        with torch.no_grad():
            expected = model.eval()(**inputs).logits
        assert not torch.allclose(expected, plain, atol=1e-4)
        remove_before_classifier(model, fold=True)
        assert set(model.state_dict()) == names
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)

    @pytest.mark.parametrize("left", [False, True])
    @pytest.mark.parametrize("family", PICKING)
    def test_only_the_position_that_counts(
        self, family: str, left: bool, classifier_of: Callable[..., Any], batch: Callable[..., Any]
    ) -> None:
        model, inputs = classifier_of(family, **({} if family == "llama" else {"resid_pdrop": 0.0})), batch(left=left)
        model.eval()
        states = model.base_model(**{k: v for k, v in inputs.items() if k != "labels"}).last_hidden_state
        last = [int(row.nonzero()[-1]) for row in inputs["attention_mask"]]
        wanted = torch.stack([states[row, place] for row, place in enumerate(last)])
        norm = IsoBN(16)
        got = without_dropout_input(model, norm)
        insert_before_classifier(model, norm)
        model(**inputs)
        assert torch.equal(got[0], wanted)
        model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"][:1]))  # the model then picks the last
        assert got[1].shape == (1, 16)

    @pytest.mark.parametrize("family", [name for name in FAMILIES if name not in PICKING])
    def test_dropout_comes_after_it(
        self, family: str, classifier_of: Callable[..., Any], batch: Callable[..., Any]
    ) -> None:
        model, inputs = classifier_of(family), batch(n=40)
        norm = BatchNormBaseline(16)
        got = without_dropout_input(model, norm)
        insert_before_classifier(model, norm)
        linear = classifier(model)
        inside: list[Tensor] = []
        linear.register_forward_pre_hook(lambda module, args: inside.append(args[0].detach()))
        dropouts: list[tuple[Tensor, Tensor]] = []
        for name, part in model.named_modules():
            if isinstance(part, nn.Dropout) and not name.startswith(model.base_model_prefix):
                part.p = 0.5
                part.register_forward_hook(lambda module, args, out: dropouts.append((args[0].detach(), out.detach())))
        model.train()(**inputs)
        before, after = dropouts[-1]
        assert torch.equal(got[0], before)
        doubled = 2 * BatchNormBaseline(16)(before).detach()
        known = before != 0  # an exact zero, as DistilBERT's ReLU makes, does not show whether it was dropped
        assert torch.allclose(inside[0][known], torch.where(after == 0, 0.0, doubled)[known], atol=1e-6)
        kept = inside[0] != 0
        assert torch.allclose(inside[0][kept], doubled[kept], atol=1e-6)
        if family == "distilbert":
            assert 0.3 < float(kept[~known].float().mean()) < 0.7
        assert 0.3 < float((inside[0] == 0).float().mean()) < 0.7

    def test_dropout_masks_do_not_shift(self, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        model = classifier_of("bert").train()
        torch.manual_seed(3)
        model(**batch())
        plain = torch.rand(1)
        insert_before_classifier(model, IsoBN(16))
        torch.manual_seed(3)
        model(**batch())
        assert torch.equal(torch.rand(1), plain)

    def test_copies_train_alone(self, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        model = classifier_of("llama")
        insert_before_classifier(model, IsoBN(16))
        other = copy.deepcopy(model)
        other.train()(**batch())
        assert [int(classifier(m).input_norm.n_updates) for m in (model, other)] == [0, 1]
        again = pickle.loads(pickle.dumps(other))
        assert torch.equal(again.eval()(**batch()).logits, other.eval()(**batch()).logits)
        remove_before_classifier(other)
        assert "score.input_norm.std" in model.state_dict()
        assert "score.input_norm.std" not in other.state_dict()

    def test_at_a_module_of_the_users_choice(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any]
    ) -> None:
        model = classifier_of("roberta")
        norm = IsoBN(16)
        got = without_dropout_input(model, norm)
        assert insert_before_classifier(model, norm, at="classifier.dense") is model.classifier.dense
        model.train()(**batch())
        assert got[0].shape == (6, 16)

    def test_save_and_load_again(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        model, inputs = classifier_of("bert"), batch()
        insert_before_classifier(model, IsoBN(16))
        model.train()(**inputs)
        model.save_pretrained(tmp_path)
        expected = model.eval()(**inputs).logits
        tf.logging.set_verbosity_error()
        plain = tf.BertForSequenceClassification.from_pretrained(tmp_path)
        assert not torch.allclose(plain(**inputs).logits, expected, atol=1e-4)
        with pytest.raises(ValueError, match="must have a method with saved tensors"):
            restore_saved_state(plain, tmp_path)
        insert_before_classifier(plain, IsoBN(16))
        assert len(restore_saved_state(plain, tmp_path)) == 3
        assert torch.equal(plain.eval()(**inputs).logits, expected)
        model.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
        assert (tmp_path / "parts/model.safetensors.index.json").is_file()
        restore_saved_state(plain, tmp_path / "parts")
        assert torch.equal(plain(**inputs).logits, expected)

        classifier_of("bert").save_pretrained(tmp_path / "without")
        with pytest.raises(DynprobeError, match="must hold the tensors of the model's methods; got 0 of 3"):
            restore_saved_state(plain, tmp_path / "without")
        with pytest.raises(DynprobeError, match="must be a saved model folder"):
            restore_saved_state(plain, tmp_path / "nothing")

    @pytest.mark.slow
    def test_a_trainer_resumes_it(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        rows = [{name: value[row] for name, value in batch(n=24).items()} for row in range(24)]

        def trained(steps: int, resume: str | None = None) -> Any:
            model = classifier_of("bert")
            insert_before_classifier(model, IsoBN(16))
            arguments = tf.TrainingArguments(
                output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=8, save_steps=2, seed=1,
                report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, lr_scheduler_type="constant",
            )  # fmt: skip
            tf.Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
            return model.state_dict()

        whole = trained(4)
        assert int(whole["classifier.input_norm.n_updates"]) == 4
        again = trained(4, str(tmp_path / "checkpoint-2"))
        assert all(torch.equal(whole[name], again[name]) for name in whole)

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
    def test_under_peft(self, classifier_of: Callable[..., Any], batch: Callable[..., Any], tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        model = classifier_of("llama")
        insert_before_classifier(model, IsoBN(16))
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
        wrapped.train()(**batch())
        assert int(classifier(wrapped).input_norm.n_updates) == 1
        wrapped.save_pretrained(tmp_path)
        fresh = classifier_of("llama")
        insert_before_classifier(fresh, IsoBN(16))
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path)
        assert torch.equal(loaded.eval()(**batch()).logits, wrapped.eval()(**batch()).logits)

    def test_bad_requests(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        with pytest.raises(ValueError, match="`module` must have the width of the classifier's input, 16; got 8"):
            insert_before_classifier(model, IsoBN(8))
        with pytest.raises(ValueError, match=r"`at` must name a module of the model.*got 'head'"):
            insert_before_classifier(model, IsoBN(16), at="head")
        with pytest.raises(ValueError, match="must have a module inserted before its classifier; got none"):
            remove_before_classifier(model)
        insert_before_classifier(model, IsoBN(16))
        with pytest.raises(ValueError, match="must not have a module inserted there already"):
            insert_before_classifier(model, IsoBN(16))
        with pytest.raises(ValueError, match=r"must be a transformers model.*got torch.nn.modules.linear.Linear"):
            insert_before_classifier(nn.Linear(2, 2), IsoBN(2))

    @pytest.mark.parametrize("kind", [tf.BertForTokenClassification, tf.BertForMaskedLM, tf.BertModel])
    def test_only_sequence_classification(self, kind: Any, classifier_of: Callable[..., Any]) -> None:
        model = kind(classifier_of("bert").config)
        with pytest.raises(ValueError, match=f"must be for sequence classification.*got {kind.__name__}"):
            insert_before_classifier(model, IsoBN(16))

    def test_what_cannot_be_folded(self, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        model = classifier_of("llama")
        insert_before_classifier(model, BatchNormBaseline(16))
        model.train()(**batch())
        with pytest.raises(ValueError, match="a linear layer without a bias"):
            remove_before_classifier(model, fold=True)
        remove_before_classifier(model)
        insert_before_classifier(model, nn.Identity())
        with pytest.raises(ValueError, match="`fold` must be False unless an IsoBN or BatchNormBaseline"):
            remove_before_classifier(model, fold=True)

    def test_batch_norm_folds_into_a_classifier_with_bias(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any]
    ) -> None:
        model = classifier_of("bert")
        insert_before_classifier(model, BatchNormBaseline(16))
        model.train()(**batch())
        expected = model.eval()(**batch()).logits
        remove_before_classifier(model, fold=True)
        assert torch.allclose(model(**batch()).logits, expected, atol=1e-5)


def _on_each_process(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    iso, norm, alone = IsoBN(3), BatchNormBaseline(3), IsoBN(3, sync=False)
    # Unequal shares of a batch, and one that a single process would leave alone.
    shares = [(FOUR[:3], FOUR[3:]), (FOUR[:1], FOUR[1:2])]
    grads = []
    for share in shares:
        x = share[rank].clone().requires_grad_()
        iso(x.detach()), alone(x.detach())
        norm(x).pow(3).sum().backward()
        grads.append(x.grad)
    torch.save([iso.state_dict(), norm.state_dict(), grads, alone.state_dict()], f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_statistics_of_the_global_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_on_each_process, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for ours, theirs in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    iso, norm = IsoBN(3), BatchNormBaseline(3)
    grads = []
    for x in (FOUR, FOUR[:2]):
        whole = x.clone().requires_grad_()
        iso(x), norm(whole).pow(3).sum().backward()
        grads.append(whole.grad)
    for got, wanted in zip(first[:2], (iso.state_dict(), norm.state_dict()), strict=True):
        assert all(torch.allclose(got[name].float(), wanted[name].float(), rtol=1e-6) for name in wanted)
    for step, wanted in enumerate(grads):
        assert wanted is not None
        assert torch.allclose(torch.cat([first[2][step], second[2][step]]), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(first[3]["covariance"], second[3]["covariance"])
