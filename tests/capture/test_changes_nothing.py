"""A captured training ends with the same bits as an uncaptured one, and leaves no trace on the model."""

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from dynprobe.capture.guard import undisturbed, unwrapped
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet
from dynprobe.probe_task import ProbeTask
from dynprobe.run import open_run

PROBE_SIZE = 12
LIGHT = CaptureSettings(hidden="none", attention=4, weights=False)


def probe_set(n: int = PROBE_SIZE) -> ProbeSet:
    rng = np.random.default_rng(3)
    ids = [rng.integers(5, 100, size=rng.integers(3, 20)) for _ in range(n)]
    return ProbeSet.from_features([{"input_ids": row} for row in ids], labels=np.arange(n) % 3)


def classifier() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        max_position_embeddings=64,
    )
    return BertForSequenceClassification(config)


def bits_of(value: torch.Tensor) -> bytes:
    return value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    """Weights, optimizer state and random states, to be compared bit by bit."""
    weights = {name: bits_of(value) for name, value in model.state_dict().items()}
    moments = [
        {key: bits_of(value) if isinstance(value, torch.Tensor) else value for key, value in state.items()}
        for state in optimizer.state.values()
    ]
    numbers = (torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate())
    return pickle.dumps((weights, moments, numbers))


def train(
    model: nn.Module, after_step: Callable[[int], object], *, autocast: bool = False, accumulate: int = 1
) -> bytes:
    """Six steps with dropout, data order and noise from the global random states."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids, labels = torch.randint(5, 100, (64, 12)), torch.randint(0, 3, (64,))
    after_step(0)
    for step in range(1, 7):
        for _ in range(accumulate):
            rows = torch.randperm(64)[:8]
            noisy = ids[rows].roll(random.randrange(3), dims=1)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = model(input_ids=noisy, labels=labels[rows]).loss
                (loss * float(np.random.rand() + 0.5)).backward()
                after_step(-step)  # where gradients wait, and where autocast is on
        optimizer.step()
        optimizer.zero_grad()
        after_step(step)
    return state_of(model, optimizer)


def frozen_classifier() -> nn.Module:
    """The lowest block is frozen and stays in eval mode, so its dropout is off."""
    model = classifier().train()
    model.bert.encoder.layer[0].eval().requires_grad_(False)
    return model


def checkpointed_classifier(*, reentrant: bool = False) -> nn.Module:
    """Each block is run again in the backward pass; the blocks stay in train mode for that."""
    model = classifier().train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # which needs an input with a gradient
        model.enable_input_require_grads()
    assert all(layer.gradient_checkpointing for layer in model.bert.encoder.layer)
    return model


def half_classifier() -> nn.Module:
    """Weights and moments in bfloat16."""
    return classifier().to(torch.bfloat16).train()


def half_frozen_checkpointed_classifier() -> nn.Module:
    model = checkpointed_classifier().to(torch.bfloat16)
    model.bert.encoder.layer[0].eval().requires_grad_(False)
    return model


MODELS = {
    "plain": lambda: classifier().train(),
    "frozen": frozen_classifier,
    "checkpointed": checkpointed_classifier,
    "reentrant": lambda: checkpointed_classifier(reentrant=True),
    "bfloat16": half_classifier,
    "all": half_frozen_checkpointed_classifier,
}


@pytest.mark.parametrize(
    "make",
    # The first and the last quickly; where the last fails, the others tell why.
    [
        pytest.param(MODELS[name], id=name, marks=[] if name in ("plain", "all") else pytest.mark.slow)
        for name in MODELS
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_ends_with_the_same_bits(
    make: Callable[[], nn.Module], autocast: bool, accumulate: int, tmp_path: Path
) -> None:
    plain = train(make(), lambda step: None, autocast=autocast, accumulate=accumulate)
    model = make()
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        captured = train(model, lambda step: recorder.snapshot(100 + step), autocast=autocast, accumulate=accumulate)
    assert captured == plain
    assert len(recorder.steps) == 13


def test_probe_tasks_and_a_random_encoder_change_no_bit(tmp_path: Path) -> None:
    tasks = {name: ProbeTask(probe_set(n), probe_set(5)) for name, n in (("one", 7), ("two", 9))}
    plain = train(frozen_classifier(), lambda step: None, autocast=True)
    model = frozen_classifier()
    with Recorder(model, probe_set(), tmp_path / "run", settings=LIGHT, probe_tasks=tasks) as recorder:
        captured = train(model, lambda step: recorder.snapshot(100 + step), autocast=True)
    assert captured == plain
    run = open_run(tmp_path / "run")
    assert [snapshot.pooled("mean", 2, probe="two.train").shape for snapshot in run] == [(9, 32)] * 13
    assert run.random_encoder("one", "test", "first", 2) is not None


def test_a_careless_probe_does_change_the_training() -> None:
    """The comparison above is able to fail."""
    plain = train(classifier().train(), lambda step: None)
    model = classifier().train()

    def careless(step: int) -> None:
        with torch.no_grad():
            model(input_ids=torch.full((2, 5), 7))

    assert train(model, careless) != plain


def traces(model: nn.Module) -> list[object]:
    """Everything on a model that a forward pass might change, apart from its weights."""
    found: list[object] = []
    for module in model.modules():
        attributes = {key: id(value) for key, value in vars(module).items()}
        hooks = {key: list(value) for key, value in vars(module).items() if "_hooks" in key and isinstance(value, dict)}
        found.append(
            (module.training, attributes, hooks, {k: v.clone() for k, v in module._buffers.items() if v is not None})
        )
    return found


def same(a: list[object], b: list[object]) -> bool:
    return all(
        x[:3] == y[:3] and all(torch.equal(x[3][k], y[3][k]) for k in x[3])  # type: ignore[index]
        for x, y in zip(a, b, strict=True)
    )


def test_nothing_is_left_on_the_model(tmp_path: Path) -> None:
    model = frozen_classifier()
    calls: list[int] = []
    handle = model.bert.encoder.layer[1].register_forward_hook(lambda *_: calls.append(1))
    before, settings = traces(model), (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
        assert same(traces(model), before)
        recorder.snapshot(1)
    assert same(traces(model), before)
    assert settings == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    assert model.config._attn_implementation == "sdpa"
    handle.remove()
    pickle.dumps(model)
    copy.deepcopy(model)
    model(input_ids=torch.full((1, 4), 7))
    n_calls = len(calls)
    model(input_ids=torch.full((1, 4), 7))
    assert len(calls) == n_calls, "the user's handle still removes the user's hook"


def test_all_is_put_back_when_the_pass_fails() -> None:
    model = classifier().train()
    before, state = traces(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in the middle"), undisturbed(model) as probed:  # noqa: PT012
        probed(input_ids=torch.full((1, 4), 7), output_hidden_states=True)
        probed.bert.encoder.layer[0].new_attribute = 1
        torch.rand(3)
        raise RuntimeError("in the middle")
    assert same(traces(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_dynamic_rotary_embeddings_keep_their_buffers(tmp_path: Path) -> None:
    """A probe longer than the model's context would otherwise rescale the frequencies for the training after it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        num_labels=3,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config).train()
    features = [{"input_ids": np.arange(5, 45)}, {"input_ids": np.arange(5, 20)}]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with Recorder(model, ProbeSet.from_features(features), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    after = dict(model.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(buffer.is_inference() for buffer in after.values())


def dynamic_llama() -> nn.Module:
    """Its rotary frequencies depend on the longest input seen: 16 positions here, 40 in the probe below."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=16, num_labels=3, pad_token_id=0, attention_dropout=0.1,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )  # fmt: skip
    return LlamaForSequenceClassification(config).train()


def test_a_probe_longer_than_the_context_changes_no_training(tmp_path: Path) -> None:
    long = ProbeSet.from_features([{"input_ids": np.arange(5, 45)}, {"input_ids": np.arange(5, 20)}])
    plain = train(dynamic_llama(), lambda step: None)
    model = dynamic_llama()
    with Recorder(model, long, tmp_path / "run") as recorder:
        assert train(model, lambda step: recorder.snapshot(100 + step)) == plain


def test_eager_attention_would_change_the_training() -> None:
    """So it matters that the implementation is put back."""
    plain = train(dynamic_llama(), lambda step: None)
    eager = dynamic_llama()
    eager.set_attn_implementation("eager")
    assert train(eager, lambda step: None) != plain


def test_wrappers_are_looked_through() -> None:
    model = classifier()
    assert unwrapped(model) is model
    assert unwrapped(nn.DataParallel(nn.DataParallel(model))) is model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of dynamo itself
def test_a_compiled_model_is_not_compiled_again(tmp_path: Path) -> None:
    import torch._dynamo as dynamo

    model = classifier().train()
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(compiled) is model
    inputs = {"input_ids": torch.full((2, 6), 7), "labels": torch.tensor([0, 1])}
    for _ in range(2):  # the first call sets config.problem_type, for which the second is compiled anew
        compiled(**inputs).loss.backward()
    graphs = dynamo.utils.counters["stats"]["unique_graphs"]
    with Recorder(compiled, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    compiled(**inputs).loss.backward()
    assert dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of dynamo itself
def test_a_model_compiled_in_place_is_not_compiled_again_and_trains_alike(tmp_path: Path) -> None:
    import torch._dynamo as dynamo

    recorders: list[Recorder] = []

    def capture(model: nn.Module, step: int) -> None:
        if not recorders:
            recorders.append(Recorder(model, probe_set(), tmp_path / "run").__enter__())
        recorders[0].snapshot(100 + step)

    def trained(after_step: Callable[[nn.Module, int], object]) -> tuple[bytes, int]:
        dynamo.reset()
        n_graphs = dynamo.utils.counters["stats"]["unique_graphs"]
        model = classifier().train()
        model.compile(backend="eager")
        end = train(model, lambda step: after_step(model, step))
        return end, dynamo.utils.counters["stats"]["unique_graphs"] - n_graphs

    plain = trained(lambda model, step: None)
    assert plain[1] > 0
    assert trained(capture) == plain
    recorders[0].close()
