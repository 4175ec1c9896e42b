"""BERTAdam: golden step ratios, hand-computed steps, and that it is a torch optimizer like any other."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynprobe.finetune.bert_adam import BertAdam, bias_correction_ratio

GOLDEN = {
    1: 3.1623, 2: 4.2496, 5: 5.7971, 10: 6.5279, 12: 6.5685, 20: 6.2409, 50: 4.5037, 100: 3.2408, 231: 2.2014, 345: 1.8509,
    500: 1.5939, 1000: 1.2576, 3000: 1.0258, 5000: 1.0034,
}  # fmt: skip


class TestRatio:
    @pytest.mark.parametrize("step", GOLDEN)
    def test_golden(self, step: int) -> None:
        assert bias_correction_ratio(step) == pytest.approx(GOLDEN[step], abs=5.0001e-5)

    def test_shape(self) -> None:
        ratios = [bias_correction_ratio(step) for step in range(1, 4001)]
        assert max(ratios) == ratios[11], "greatest at t = 12"
        assert next(t for t, r in enumerate(ratios, 1) if t > 12 and r < 1.05) == 2375
        assert next(t for t, r in enumerate(ratios, 1) if t > 12 and r < 1.01) == 3925
        robust = [bias_correction_ratio(step, betas=(0.9, 0.98)) for step in range(1, 100)]
        assert max(robust) == robust[13] == pytest.approx(1.554, abs=5e-4)

    @pytest.mark.parametrize(
        ("n_steps", "mean"), [(234, 3.95), (345, 3.38), (540, 2.79), (804, 2.36)], ids=["RTE", "MRPC", "STS-B", "CoLA"]
    )
    def test_mean_over_a_run_with_warm_up(self, n_steps: int, mean: float) -> None:
        warm = int(0.1 * n_steps)
        rates = [t / warm if t < warm else (n_steps - t) / (n_steps - warm) for t in range(n_steps)]
        ratios = [bias_correction_ratio(t + 1) for t in range(n_steps)]
        assert sum(r * lr for r, lr in zip(ratios, rates, strict=True)) / sum(rates) == pytest.approx(mean, abs=0.005)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"`step` must be at least 1.*got 0"):
            bias_correction_ratio(0)
        with pytest.raises(ValueError, match=r"`betas` must lie in \[0, 1\); got \(0.9, 1.0\)"):
            bias_correction_ratio(1, betas=(0.9, 1.0))


def moved(optimizer_of: Any, n_steps: int, *, grad: float = 1.0) -> list[float]:
    """Distance that each step goes with a constant gradient and rate 1."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer, places = optimizer_of([weight]), [0.0]
    for _ in range(n_steps):
        weight.grad = torch.full_like(weight, grad)
        optimizer.step()
        places.append(-float(weight.detach()[0]))
    return [after - before for before, after in pairwise(places)]


def with_rate_one(**options: Any) -> Any:
    return lambda params: BertAdam(params, lr=1.0, **options)


class TestSteps:
    def test_against_adam_with_a_constant_gradient(self) -> None:
        ours = moved(with_rate_one(eps=0.0), 300)
        adam = moved(lambda p: torch.optim.AdamW(p, lr=1.0, eps=0.0, weight_decay=0.0), 300)
        for step in (1, 2, 5, 10, 12, 20, 50, 100, 231):
            assert ours[step - 1] / adam[step - 1] == pytest.approx(GOLDEN[step], rel=1e-5)

    def test_where_eps_stands(self) -> None:
        """|g| = 1e-5, ε = 1e-6: the three forms differ, as four optimizers in use did."""
        bert = moved(with_rate_one(eps=1e-6), 100, grad=1e-5)
        former = moved(with_rate_one(eps=1e-6, scale="1/r"), 100, grad=1e-5)
        adam = moved(with_rate_one(eps=1e-6, bias_correction=True), 100, grad=1e-5)
        torchs = moved(lambda p: torch.optim.AdamW(p, lr=1.0, eps=1e-6, weight_decay=0.0), 100, grad=1e-5)
        for forms, golden in (
            (bert, (0.760, 3.260, 2.448)),
            (former, (0.240, 0.499, 0.755)),
            (adam, (0.909, 0.909, 0.909)),
        ):
            assert [forms[t - 1] for t in (1, 10, 100)] == pytest.approx(golden, abs=5.001e-4)
        assert adam == pytest.approx(torchs, rel=1e-12)

    def test_the_arms_of_the_experiment(self) -> None:
        """Adam at lr·r steps as BERTAdam, BERTAdam at lr/r as Adam, when ε is negligible."""
        runs = {
            (correction, scale): moved(with_rate_one(eps=0.0, bias_correction=correction, scale=scale), 50)
            for correction, scale in ((False, "1"), (True, "r"), (True, "1"), (False, "1/r"))
        }
        assert runs[True, "r"] == pytest.approx(runs[False, "1"], rel=1e-12)
        assert runs[False, "1/r"] == pytest.approx(runs[True, "1"], rel=1e-12)

    @given(seed=st.integers(0, 100), decay=st.sampled_from([0.0, 0.1]), scale=st.sampled_from(["1", "r", "1/r"]))
    @settings(max_examples=20, deadline=None)
    def test_against_the_formula(self, seed: int, decay: float, scale: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        grads = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimizer = BertAdam([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=decay, scale=scale)
        theta, m, v = torch.ones(4).double(), torch.zeros(4).double(), torch.zeros(4).double()
        for step, grad in enumerate(grads, start=1):
            weight.grad = grad.clone()
            optimizer.step()
            m, v = 0.8 * m + 0.2 * grad, 0.95 * v + 0.05 * grad**2
            r = bias_correction_ratio(step, betas=(0.8, 0.95))
            theta = theta - 0.1 * {"1": 1, "r": r, "1/r": 1 / r}[scale] * m / (v.sqrt() + 1e-3)
            theta = theta * (1 - 0.1 * decay)  # after the step
        assert torch.allclose(weight.detach(), theta, rtol=1e-12)

    def test_with_correction_it_is_torchs_adam_but_for_the_place_of_decay(self) -> None:
        torch.manual_seed(0)
        x, y = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
        y.load_state_dict(x.state_dict())
        ours = BertAdam(x.parameters(), lr=0.1, bias_correction=True)
        adam = torch.optim.AdamW(y.parameters(), lr=0.1, weight_decay=0.0)
        for _ in range(5):
            for model, optimizer in ((x, ours), (y, adam)):
                optimizer.zero_grad()
                model(torch.ones(2, 4, dtype=torch.float64)).pow(2).sum().backward()
                optimizer.step()
        assert torch.allclose(x.weight, y.weight, rtol=1e-12)

    def test_one_seed_of_noise_goes_further_without_correction(self) -> None:
        """Measured for METHODS.md: the root mean square of weights after 12 steps of pure noise gradients."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(12, 20000, generator=generator, dtype=torch.float64)
        far = {}
        for correction in (False, True):
            weight = nn.Parameter(torch.zeros(20000, dtype=torch.float64))
            optimizer = BertAdam([weight], lr=1.0, bias_correction=correction)
            for grad in noise:
                weight.grad = grad
                optimizer.step()
            far[correction] = float(weight.detach().square().mean().sqrt())
        assert 5 < far[False] / far[True] < 6.57


class TestAsAnOptimizer:
    def test_parameters_that_join_later_count_their_own_steps(self) -> None:
        first, late = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
        optimizer = BertAdam([first, late], lr=1.0, eps=0.0)
        for step in range(3):
            first.grad = torch.ones_like(first)
            late.grad = torch.ones_like(late) if step == 2 else None
            optimizer.step()
        assert late.detach()[0].item() == pytest.approx(-(10**0.5), rel=1e-12)
        assert [int(optimizer.state[p]["step"]) for p in (first, late)] == [3, 1]

    @pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.Adam])
    def test_state_dict_round_trip_and_torchs(self, other: Any) -> None:
        def trained(make: Any, steps: int, state: Any = None) -> tuple[Tensor, Any]:
            torch.manual_seed(0)
            model = nn.Linear(4, 3)
            optimizer = make(model.parameters())
            if state is not None:
                model.load_state_dict(state[0]), optimizer.load_state_dict(state[1])
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.ones(2, 4)).pow(2).sum().backward()
                optimizer.step()
            return model.weight.detach(), (copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()))

        def ours(params: Any) -> BertAdam:
            return BertAdam(params, lr=1e-2, scale="r", weight_decay=0.1)

        half = trained(ours, 3)[1]
        assert torch.equal(trained(ours, 3, half)[0], trained(ours, 6)[0])
        trained(lambda p: other(p, lr=1e-2), 1, half)  # loads and steps
        theirs = trained(lambda p: other(p, lr=1e-2), 3)[1]
        model = nn.Linear(4, 3)
        optimizer = BertAdam(model.parameters(), lr=1.0)
        optimizer.load_state_dict(theirs[1])
        assert optimizer.param_groups[0]["lr"] == 1e-2
        assert optimizer.param_groups[0]["scale"] == "1"
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        assert {int(state["step"]) for state in optimizer.state.values()} == {4}

    def test_groups_schedulers_closures_and_scaling(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters(), "weight_decay": 0.5}]
        optimizer = BertAdam(groups, lr=0.1)
        before = copy.deepcopy(model.state_dict())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

        def closure() -> float:
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).pow(2).sum()
            loss.backward()
            return float(loss.detach())

        first = optimizer.step(closure)
        scheduler.step()
        assert torch.equal(model[0].weight, before["0.weight"])
        assert not torch.equal(model[1].weight, before["1.weight"])
        assert scheduler.get_last_lr() == [0.0, 0.05]
        assert optimizer.step(closure) < first
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        place = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(3, 4)).pow(2).sum() * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(value, place[name]) for name, value in model.state_dict().items()), "a skipped step"

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_half_precision_beside_single(self, kind: torch.dtype) -> None:
        weights = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in (kind, torch.float32)]
        optimizer = BertAdam(weights, lr=0.5)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert weights[0].dtype == kind
        assert torch.allclose(weights[0].float(), weights[1], rtol=4 * float(torch.finfo(kind).eps))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -1.0}, "`lr` must be at least 0; got -1.0"),
            ({"eps": -1e-8}, "`eps` must be at least 0"),
            ({"weight_decay": float("nan")}, "`weight_decay` must be at least 0; got nan"),
            ({"betas": (1.0, 0.9)}, r"`betas` must lie in \[0, 1\)"),
            ({"scale": "2"}, "`scale` must be '1', 'r' or '1/r'; got '2'"),
        ],
    )
    def test_bad_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BertAdam([nn.Parameter(torch.zeros(1))], **options)

    def test_sparse_gradients(self) -> None:
        embedding = nn.Embedding(5, 2, sparse=True)
        optimizer = BertAdam(embedding.parameters())
        embedding(torch.tensor([1])).sum().backward()
        with pytest.raises(ValueError, match="gradients must be dense for BertAdam"):
            optimizer.step()
