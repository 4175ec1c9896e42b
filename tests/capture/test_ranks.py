"""Who measures and who writes; and that a fault of one process reaches all, told by a stand-in for the other processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from dynprobe.capture.guard import sharded_parts
from dynprobe.capture.ranks import NoFile, Ranks, SharedFile
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.snapshot_writer import DoesNotFitFloat16
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run

GOING_ON, DONE, YES, FAULT = range(4)
Others = Callable[..., Ranks]


class Mesh:
    """Stands for the device mesh of two processes."""

    device_type, ndim = "cpu", 1

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def get_coordinate(self) -> list[int]:
        return [self.rank]

    def get_group(self, axis: int) -> None:
        return None


@pytest.fixture
def with_other(monkeypatch: pytest.MonkeyPatch) -> Others:
    """One of two processes; the other says the given words, in order, and no more."""

    def make(*words: int, rank: int = 0, number: int = 0) -> Ranks:
        waiting = list(words)

        def all_reduce(said: torch.Tensor, *_args: Any, **_more: Any) -> None:
            word = waiting.pop(0)
            said.copy_(torch.maximum(said, torch.tensor([word, -word, number, -number])))

        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        ranks = Ranks(Mesh(rank))
        ranks.unheard = waiting  # type: ignore[attr-defined]
        return ranks

    return make


def test_a_process_alone_asks_nobody() -> None:
    ranks = Ranks.of(nn.Linear(1, 1))
    with ranks.together():
        assert ranks.decided(True)
        assert not ranks.any(False)
        ranks.require_same("probe set", "text")
    with pytest.raises(OSError, match="full"):
        ranks.write(lambda: fail(OSError(28, "full")))


def test_of_whole_weights_only_the_first_process_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    ranks = Ranks.of(nn.Linear(1, 1))
    assert (ranks.measures, ranks.writes, ranks.shared) == (False, False, False)
    ranks.write(lambda: fail(AssertionError("only the first process writes")))


def test_the_first_of_a_mesh_writes_and_decides(with_other: Others) -> None:
    first = with_other(DONE, DONE)
    assert (first.measures, first.writes) == (True, True)
    with first.together():
        assert first.decided(True)
    other = with_other(DONE, DONE, rank=1)
    assert (other.measures, other.writes) == (True, False)
    with other.together():
        assert not other.decided(True), "it is for the first to say"
    asked = with_other(DONE, DONE, rank=1)
    with asked.together():
        assert asked.any(True)


def fail(error: Exception) -> None:
    raise error


def test_a_fault_elsewhere_is_heard(with_other: Others) -> None:
    ranks = with_other(FAULT)
    with pytest.raises(CaptureError, match="another process of this training could not go on"), ranks.together():
        pass
    assert ranks.unheard == []


def test_a_fault_here_is_told_once(with_other: Others) -> None:
    ranks = with_other(DONE)
    with pytest.raises(OSError, match="full"), ranks.together():
        fail(OSError(28, "full"))
    assert ranks.unheard == []


def test_after_a_fault_nothing_more_is_said_until_the_next_time(with_other: Others) -> None:
    ranks = with_other(FAULT, DONE)
    with pytest.raises(CaptureError, match="another process"), ranks.together():
        ranks.decided(True)
    assert ranks.unheard == [DONE]
    with ranks.together():
        pass


def test_a_process_that_is_gone_is_not_asked_again(with_other: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = with_other()
    monkeypatch.setattr(dist, "all_reduce", lambda *_args, **_more: fail(RuntimeError("Connection closed by peer")))
    with pytest.raises(RuntimeError, match="Connection closed"), ranks.together():
        ranks.decided(True)


def test_processes_that_hold_different_probe_sets(with_other: Others) -> None:
    ranks = with_other(DONE, FAULT, number=5)
    with pytest.raises(CaptureError, match="must have the same probe set; got different ones"), ranks.together():
        ranks.require_same("probe set", "mine")
    assert ranks.unheard == [], "all processes find it, and all say so"


def test_a_process_with_fewer_batches_is_noticed(with_other: Others) -> None:
    model = nn.Linear(1, 1)
    ranks = with_other(DONE)
    with pytest.raises(CaptureError, match="different numbers of batches"), ranks.together(), ranks.in_step(model):
        model(torch.ones(1))
    assert not model._forward_pre_hooks


def test_what_could_not_be_written_ends_the_next_snapshot(with_other: Others) -> None:
    ranks = with_other(DONE)
    ranks.write(lambda: fail(OSError(28, "full")))
    with pytest.raises(OSError, match="full"), ranks.together():
        pass
    assert ranks.unheard == []


class Full(NoFile):
    """A file on a full disk."""

    def append(self, name: str, block: np.ndarray) -> None:
        raise OSError(28, "full")


def test_a_full_disk_waits_for_the_end_of_the_pass(with_other: Others, tmp_path: Path) -> None:
    """In the middle of it the others would wait for this process's weights."""
    model, passes = nn.Linear(1, 1), []
    ranks = with_other(GOING_ON, GOING_ON)
    file = SharedFile(ranks, tmp_path / "x.h5", {})
    file._file = Full(tmp_path, {})
    with pytest.raises(OSError, match="full"), ranks.together(), ranks.in_step(model), file:  # noqa: PT012
        model(torch.ones(1))
        file.append("x", np.ones(1))
        passes.append(1)
        model(torch.ones(1))
        passes.append(2)
    assert passes == [1], "and the next pass does not begin"
    assert ranks.unheard == []


def test_the_file_of_the_first_process_decides_whether_the_pass_is_repeated(with_other: Others, tmp_path: Path) -> None:
    def one_pass(ranks: Ranks, overflow: bool) -> None:
        with ranks.together(), ranks.open_file(tmp_path / "x.h5", {}) as file:
            file.write("x", np.ones(2, np.float16))
            if overflow:
                raise DoesNotFitFloat16({"x"})

    with pytest.raises(DoesNotFitFloat16):
        one_pass(with_other(YES, DONE, rank=1), overflow=False)
    with pytest.raises(DoesNotFitFloat16):
        one_pass(with_other(DONE, DONE), overflow=True)
    assert not (tmp_path / "x.h5").exists()
    one_pass(with_other(DONE, DONE, rank=1), overflow=True)  # of a file that is not written
    assert not (tmp_path / "x.h5").exists()
    one_pass(with_other(DONE, DONE), overflow=False)
    assert (tmp_path / "x.h5").is_file()


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, max_position_embeddings=32, **sizes))


def probe_set() -> ProbeSet:
    rng = np.random.default_rng(0)
    return ProbeSet.from_features(
        [{"input_ids": rng.integers(5, 100, size=n)} for n in rng.integers(3, 20, size=12)], batch_size=4
    )


def train(model: Any, after_step: Callable[[int], object]) -> list[bytes]:
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    after_step(0)
    for step in range(1, 4):
        model(input_ids=torch.randint(5, 100, (4, 9)), labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step(step)
    for part in sharded_parts(model):
        part.reshard()
    return [getattr(p, "to_local", lambda p=p: p)().detach().numpy().tobytes() for p in model.parameters()]


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch itself
class TestFullyShard:
    """Of one process, so that it is quick; see test_distributed.py for two."""

    @staticmethod
    def sharded() -> Any:
        from torch.distributed.fsdp import fully_shard

        model = classifier()
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        return fully_shard(model)

    def test_the_same_bits_the_same_snapshots_and_weights_sharded_again(self, tmp_path: Path) -> None:
        whole = classifier()
        with Recorder(whole, probe_set(), tmp_path / "whole", max_steps=3) as recorder:
            train(whole, recorder.snapshot)
        plain = train(self.sharded(), lambda step: None)
        model, kinds = self.sharded(), []

        def snapshot(step: int) -> None:
            recorder.snapshot(step)
            kinds.append({type(parameter).__name__ for parameter in model.parameters()})

        with Recorder(model, probe_set(), tmp_path / "run", max_steps=3) as recorder:
            assert train(model, snapshot) == plain
        assert kinds == [{"DTensor"}] * 4
        run, expected = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
        assert run.steps == expected.steps == (0, 1, 2, 3)
        assert np.array_equal(run[0].hidden_states(2), expected[0].hidden_states(2))
        changes = expected[3].parameter_changes()
        assert run[3].parameter_changes() == {name: pytest.approx(pair, rel=1e-5) for name, pair in changes.items()}
        assert run.manifest["model"]["model_class"] == "BertForSequenceClassification"

    @pytest.mark.parametrize("torch_has_a_way", [True, False])
    def test_a_pass_that_breaks_off_leaves_the_model_fit_to_train(
        self, torch_has_a_way: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not torch_has_a_way:
            monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.reset_iter_state", raising=False)
        plain = train(self.sharded(), lambda step: None)
        model = self.sharded()
        hook = model.bert.encoder.layer[1].register_forward_hook(
            lambda module, *_: None if module.training else fail(MemoryError("no memory for the probe"))
        )
        recorder = Recorder(model, probe_set(), tmp_path / "run").__enter__()

        def snapshot(step: int) -> None:
            with pytest.raises(MemoryError, match="no memory"):
                recorder.snapshot(step)

        assert train(model, snapshot) == plain
        hook.remove()
        recorder.close()

    def test_a_part_of_what_is_sharded_is_refused(self, tmp_path: Path) -> None:
        model = self.sharded()
        with pytest.raises(CaptureError, match=r"the one to capture must be the whole; got .*Bert.*a part of"):
            Ranks.of(model.bert.encoder.layer[0])
        with pytest.raises(CaptureError, match="weights sharded by tensor parallelism, or by `fully_shard` of what"):
            Recorder(model.bert, probe_set(), tmp_path / "run")

    def test_tensor_parallelism_is_refused(self, tmp_path: Path) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

        model = classifier()
        parallelize_module(
            model, init_device_mesh("cpu", (1,)), {"bert.encoder.layer.0.intermediate.dense": ColwiseParallel()}
        )
        with pytest.raises(CaptureError, match="weights sharded by tensor parallelism"):
            Recorder(model, probe_set(), tmp_path / "run")
