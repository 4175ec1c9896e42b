"""What the default capture costs a LoRA training of a large Llama-shaped model, and what comparing two such runs does.

Run: python benchmarks/llm.py [--size 1b --device cpu --steps 3 --tokens 256 --batch 4]; with --size 8b --device cuda on
a GPU. Weights are random. A few optimizer steps and two snapshots are timed; from them follow the share of capture in a
training of any length, and the length from which it is below 3 %. For the comparison, the snapshots between the two are
the first one with noise, as only time matters there.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dynprobe
from dynprobe.capture.architecture import describe_model
from dynprobe.capture.default_probe import default_n_examples
from dynprobe.capture.recorder import Recorder
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.layout import snapshot_path
from dynprobe.storage.reader import FileReader
from dynprobe.storage.writer import FileWriter

SIZES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    # Stores what 1b stores at a fifth of its arithmetic, to time the comparison where arithmetic is slow.
    "1b-thin": {"hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
WIDE_VOCABULARY = 128_256
MOST = 0.03  # share of the training that capture may take


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--examples", type=int, help="probe examples; by default as many as a capture takes by itself")
    asked = parser.parse_args()
    model = make_model(asked.size, asked.device)
    n_examples = asked.examples or default_n_examples(describe_model(model))
    rng = np.random.default_rng(0)
    texts = [{"input_ids": rng.integers(5, 1000, size=rng.integers(32, 129))} for _ in range(n_examples)]
    probe = ProbeSet.from_features(texts, n_examples=n_examples)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    n_tokens = probe.n_real_tokens("model")
    print(f"{n_weights / 1e9:.2f} billion weights on {asked.device}, {n_examples} probe examples, {n_tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        capture_twice(model, probe, Path(folder), asked)


def make_model(size: str, device: str) -> torch.nn.Module:
    """A model with random weights in bfloat16, and LoRA on queries and values."""
    shape = SIZES[size]
    config = LlamaConfig(
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 4,
        vocab_size=WIDE_VOCABULARY if size == "8b" else 32_000,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"])
    ).train()


def capture_twice(model: torch.nn.Module, probe: ProbeSet, folder: Path, asked: argparse.Namespace) -> None:
    """Time steps and snapshots of one training, make two whole runs of them, and compare these."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(5, 1000, (asked.batch, asked.tokens), device=asked.device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with Recorder(model, probe, folder / "a", max_steps=1000) as recorder:
        planned = recorder.plan.steps
        first = timed(lambda: recorder.snapshot(0), asked.device)
        step()  # what happens once
        each_step = timed(step, asked.device, asked.steps)
        each = timed(lambda: recorder.snapshot(planned[-1]), asked.device)
        size = snapshot_path(folder / "a", 0).stat().st_size
        for note in recorder.notes:
            print(note)
    cost = first + (len(planned) - 1) * each
    n_steps = cost / each_step / MOST
    print(
        f"a step of {asked.batch} x {asked.tokens} tokens: {each_step:.2f} s; "
        f"a snapshot: {each:.2f} s (the first {first:.2f} s), {size / 1e6:.0f} MB"
    )
    print(
        f"{len(planned)} snapshots: {len(planned) * size / 1e9:.2f} GB, {cost:.1f} s; at most {MOST:.0%} of a training of "
        f"{n_steps:.0f} steps ({n_steps * asked.batch * asked.tokens / 1e6:.2f} million tokens) or more"
    )
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        if name == "b":
            copy_run(folder / "a", folder / "b", rng)
        for number in planned[1:-1]:
            copy_snapshot(snapshot_path(folder / "a", 0), snapshot_path(folder / name, number), number, rng)
    runs = [dynprobe.open_run(folder / name) for name in ("a", "b")]
    results: list[object] = []
    seconds = timed(lambda: results.append(dynprobe.compare(*runs)), "cpu")
    print(f"comparing two such runs of {len(planned)} snapshots: {seconds:.0f} s, {len(results[0].frame)} values")


def copy_run(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Another run of the same probe set, with noise."""
    (target / "snapshots").mkdir(parents=True)
    (target / "probes").mkdir()
    for name in ("manifest.json", "probes/main.h5"):
        (target / name).write_bytes((source / name).read_bytes())
    for file in (source / "snapshots").glob("*.h5"):
        copy_snapshot(file, target / "snapshots" / file.name, int(file.stem[5:]), rng)


def copy_snapshot(source: Path, target: Path, step: int, rng: np.random.Generator) -> None:
    """The same snapshot with noise of 5 %, as if it had been taken at another step."""
    with FileReader(source) as old:
        meta = {key: value for key, value in old.meta.items() if key not in ("datasets", "format", "step")}
        with FileWriter(target, {**meta, "step": step}) as new:
            for name in old.names:
                values, facts = old.read(name), dict(old.facts(name))
                own = {key: facts[key] for key in facts if key not in ("sha256", "shape", "dtype")}
                if values.dtype == np.float16 and "attention" not in name:
                    values = (values * (1 + 0.05 * rng.standard_normal(values.shape, dtype=np.float32))).astype(
                        np.float16
                    )
                new.write(name, values, **own)


def timed(action: Callable[[], object], device: str, times: int = 1) -> float:
    """Seconds that an action takes, on average."""
    started = time.perf_counter()
    for _ in range(times):
        action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


if __name__ == "__main__":
    main()
