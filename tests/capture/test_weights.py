"""How far weights have moved, against a slow reference in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from dynprobe.capture import weights
from dynprobe.capture.snapshot_writer import parameter_arrays
from dynprobe.capture.weights import StartingWeights


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 5), nn.Linear(5, 2)).to(dtype)
    built[0].weight.requires_grad_(False)
    return built


def slow_norm(values: torch.Tensor) -> float:
    return float(np.sqrt(sum(float(value) ** 2 for value in values.detach().double().flatten())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_distances_against_a_slow_reference(dtype: torch.dtype, size: float) -> None:
    moved = model(dtype)
    start = StartingWeights(moved)
    before = {name: value.detach().clone() for name, value in moved.named_parameters()}
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += size * torch.randn_like(parameter)
    found = start.distances(moved)
    assert "0.weight" not in found, "frozen weights do not move"
    assert len(found) == 5
    for name, (distance, norm) in found.items():
        now = dict(moved.named_parameters())[name]
        # The difference is formed in the dtype of the weights: one rounding per value.
        assert distance == pytest.approx(
            slow_norm(now.double() - before[name].double()), rel=2 * torch.finfo(dtype).eps
        )
        assert norm == pytest.approx(slow_norm(now), rel=1e-12)


def test_the_start_is_a_copy_and_the_same_weights_have_not_moved() -> None:
    same = model()
    start = StartingWeights(same)
    assert all(distance == 0.0 for distance, _ in start.distances(same).values())
    with torch.no_grad():
        same[1].bias.fill_(3.0)
    assert start.distances(same)["1.bias"][0] > 0


def test_a_weight_that_is_gone_is_left_out() -> None:
    start = StartingWeights(model())
    assert set(start.distances(nn.Sequential(nn.Linear(7, 5)))) == {"0.bias"}


def test_weights_too_large_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = 5 + 25 + 5 + 10 + 2
    monkeypatch.setattr(weights, "MAX_BYTES", trainable * 4)
    assert StartingWeights.fits(model())
    monkeypatch.setattr(weights, "MAX_BYTES", trainable * 4 - 1)
    assert not StartingWeights.fits(model())


def test_as_arrays() -> None:
    arrays = parameter_arrays({"a.weight": (1.0, 2.0), "b": (0.0, 0.5)})
    assert bytes(arrays["names"]) == b'["a.weight", "b"]'
    assert arrays["distance"].tolist() == [1.0, 0.0]
    assert arrays["norm"].tolist() == [2.0, 0.5]
    assert parameter_arrays({}) == {}
