"""What every measure of observations promises: inputs and global state untouched, no gradient, any layout of memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dynprobe.metrics import (
    bootstrap_interval,
    cca_similarity,
    dimension_correlation,
    dimension_std,
    effective_rank,
    explained_variance_ratio,
    fit_linear_probe,
    isoscore,
    jackknife_interval,
    js_divergence,
    linear_cka_similarity,
    mean_cosine,
    participation_ratio,
    principal_subspace,
    procrustes_similarity,
    pwcca_similarity,
    svcca_chance_level,
    svcca_half_samples,
    svcca_similarity,
    symmetric_kl_divergence,
    wilson_interval,
)

GROUPS = np.arange(20) % 4
OBSERVING: dict[str, Callable] = {
    "svcca": lambda x: svcca_similarity(x, x**2),
    "cca": lambda x: cca_similarity(x, x**2),
    "pwcca": lambda x: pwcca_similarity(x, x**2),
    "cka": lambda x: linear_cka_similarity(x, x**2),
    "cka_debiased": lambda x: linear_cka_similarity(x, x**2, debiased=True),
    "procrustes": lambda x: procrustes_similarity(x, x**2),
    "subspace": lambda x: principal_subspace(x).singular_values,
    "chance": lambda x: svcca_chance_level(principal_subspace(x), principal_subspace(x**2), shifts=[3, 7]),
    "leave_group_out": lambda x: svcca_half_samples(x, x**2, GROUPS),
    "explained_variance": explained_variance_ratio,
    "participation": participation_ratio,
    "effective_rank": effective_rank,
    "isoscore": isoscore,
    "std": dimension_std,
    "correlation": dimension_correlation,
    "cosine": mean_cosine,
    "probe": lambda x: fit_linear_probe(x, GROUPS % 2).logits(x),
    "probe_loss": lambda x: fit_linear_probe(x, GROUPS % 2).log_loss(x, GROUPS % 2),
}
OTHERS: dict[str, Callable] = {
    "js": lambda x: js_divergence(abs(x), x**2),
    "symmetric_kl": lambda x: symmetric_kl_divergence(x, x**2),
    "bootstrap": lambda x: bootstrap_interval(x)[0],
    "jackknife": lambda x: jackknife_interval(x[:, 0], x)[0],
    "wilson": lambda x: wilson_interval(abs(x), 100)[1],
}
of_observations = pytest.mark.parametrize("measure", OBSERVING.values(), ids=list(OBSERVING))
of_all = pytest.mark.parametrize("measure", (OBSERVING | OTHERS).values(), ids=list(OBSERVING | OTHERS))


def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 5)) + 0.3


def state() -> list[object]:
    return [
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(), np.geterr(),
    ]  # fmt: skip


@of_all
def test_inputs_and_global_state_are_left_alone(measure: Callable) -> None:
    x, before = data(), state()
    x.flags.writeable = False
    value = np.asarray(measure(x))
    tensor = torch.from_numpy(data())
    measure(tensor)
    assert state() == before
    np.testing.assert_array_equal(tensor.numpy(), x)
    np.testing.assert_array_equal(np.asarray(measure(x)), value)  # and nothing is remembered


@of_all
def test_tensors_give_float64_tensors_without_a_graph(measure: Callable) -> None:
    tensor = torch.from_numpy(data()).requires_grad_()
    found = measure(tensor)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert found.numpy() == pytest.approx(np.asarray(measure(data())), abs=1e-12)
    with torch.inference_mode():
        assert measure(tensor).numpy() == pytest.approx(found.numpy(), abs=1e-14)


@of_all
def test_the_layout_in_memory_does_not_matter(measure: Callable) -> None:
    x = data()
    expected = pytest.approx(np.asarray(measure(x)), abs=1e-12)
    spaced = np.zeros((40, 10))
    spaced[::2, 9::-2] = x
    for other in (np.asfortranarray(x), x.astype(x.dtype.newbyteorder()), spaced[::2, 9::-2], x.astype(np.longdouble)):
        assert np.asarray(measure(other)) == expected
    assert measure(torch.from_numpy(x.T.copy()).T).numpy() == expected


@of_observations
def test_empty_axes_are_refused(measure: Callable) -> None:
    for shape in ((0, 20, 5), (20, 0), (0, 5)):
        with pytest.raises(ValueError, match="at least 2 samples and no empty axis; got shape"):
            measure(np.zeros(shape))


def test_what_is_no_array_of_numbers() -> None:
    for bad in ("text", None, [[None, 1.0], [2.0, 3.0]]):
        with pytest.raises(TypeError, match=r"`x` must be an array or tensor of numbers; got .* of dtype"):
            isoscore(bad)
    with pytest.raises(TypeError, match="`x` must hold real numbers; got complex128"):
        isoscore(np.ones((3, 2)) * 1j)
    with pytest.raises(ValueError, match="`x` must be a regular array; got list of uneven rows"):
        isoscore([[1.0, 2.0], [3.0]])
