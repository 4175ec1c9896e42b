"""Methods under DistributedDataParallel: gradients are the mean over the processes, noise differs between them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, copy, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertForSequenceClassification
from dynprobe import finetune

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
config = BertConfig(vocab_size=60, num_labels=3, **sizes)
plain = BertForSequenceClassification(config).double().train()
torch.manual_seed(rank)
inputs = {"input_ids": torch.randint(5, 60, (4, 6)), "labels": torch.randint(0, 3, (4,))}
cases = [("r3f", {"eps": 0.1}), ("r3f", {"grad_through": "clean"}), ("smart", {"eps": 0.1})]
for name, options in [*cases, ("freelb", {}), ("rdrop", {}), ("r4f", {})]:
    model = copy.deepcopy(plain)
    method, alone = (finetune.method(name, **options) for _ in range(2))
    method.prepare(model)
    reference = copy.deepcopy(plain)
    alone.prepare(reference)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # a second step would notice a reduction that never ended
        model.zero_grad()
        reference.zero_grad()
        state = torch.get_rng_state()
        method.loss(wrapped, inputs).loss.backward()
        torch.set_rng_state(state)
        alone.loss(reference, inputs).loss.backward()
    noise = torch.rand(3, generator=method._noise.generator("cpu"))
    seen = [torch.empty(3) for _ in range(2)]
    dist.all_gather(seen, noise)
    assert not torch.equal(*seen), "noise must differ between processes"
    for (key, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is None:
            continue
        dist.all_reduce(theirs.grad)
        torch.testing.assert_close(ours.grad, theirs.grad / 2, msg=lambda text: f"{name} {key}: {text}")
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
def test_gradients_are_the_mean_over_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    common["PYTHONPATH"] = str(Path(__file__).parents[2])
    running = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert out.strip().endswith("equal"), errors
