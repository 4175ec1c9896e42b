"""Every architecture × every way of training: a capture in the middle changes no bit, and leaves nothing on the model.

COVERAGE.md shows the table; `python -m tests.capture.test_matrix` writes it anew.
"""

import copy
import pickle
import random
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet
from dynprobe.run import Run, open_run
from tests.capture.test_zoo import BOTH, DECODERS, ENCODERS, Padding, features

PAGE = Path(__file__).parents[2] / "dynprobe" / "capture" / "COVERAGE.md"
VIT = tf.ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
)
ARCHITECTURES: dict[str, Any] = {**ENCODERS, **DECODERS, **BOTH, "vit": VIT}
_DROPOUT = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "activation_dropout",
    "dropout_rate", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout",
)  # fmt: skip
N_STEPS, N_ACCUMULATED = 2, 2


def build(name: str) -> nn.Module:
    """A model with random weights and dropout wherever it can have it."""
    config = copy.deepcopy(ARCHITECTURES[name])
    for option in _DROPOUT:
        if hasattr(config, option):
            setattr(config, option, 0.2)
    kind = tf.AutoModelForCausalLM if name in DECODERS else tf.AutoModelForSeq2SeqLM if name in BOTH else tf.AutoModel
    torch.manual_seed(0)
    return kind.from_config(config).train()


def probe_set(name: str) -> ProbeSet:
    if name == "vit":
        pixels = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
        return ProbeSet.from_features([{"pixel_values": image} for image in pixels])
    return ProbeSet.from_features(features(decoder=name in BOTH), tokenizer=Padding("left"))


def batch(name: str) -> dict[str, Tensor]:
    """What a step trains on: other inputs than the probe's, drawn from the global random state."""
    if name == "vit":
        return {"pixel_values": torch.randn(4, 3, 16, 16)}
    names = ("input_ids", "decoder_input_ids") if name in BOTH else ("input_ids",)
    return {key: torch.randint(5, 64, (4, 10)) for key in names}


class Mode:
    """A way of training."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """What is done to the model before training."""
        return model

    def forward(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """First output of the model."""
        return model(**inputs)[0]

    def left_out(self, name: str) -> str:
        """Why an architecture cannot be trained so; empty where it can."""
        return ""


class Checkpointed(Mode):
    def prepare(self, model: nn.Module) -> nn.Module:
        model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    def left_out(self, name: str) -> str:
        return (
            "" if build(name).supports_gradient_checkpointing else "transformers has no gradient checkpointing for it"
        )


class Bf16Weights(Mode):
    def prepare(self, model: nn.Module) -> nn.Module:
        return model.to(torch.bfloat16)

    def forward(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return model(**{k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()})[0]


class Autocast(Mode):
    def forward(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**inputs)[0]

    def left_out(self, name: str) -> str:
        return "its own attention overflows under bf16 autocast, captured or not" if name == "deberta" else ""


class Frozen(Mode):
    """The first block, or what holds all of them where they share their weights."""

    def prepare(self, model: nn.Module) -> nn.Module:
        blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        blocks[0].eval().requires_grad_(False)
        return model


class Lora(Mode):
    def prepare(self, model: nn.Module) -> nn.Module:
        import peft

        # Of a mixture of experts peft would wrap the experts too, for which it knows no dropout.
        targets = ["q_proj", "v_proj"] if hasattr(model.config, "num_local_experts") else "all-linear"
        config = peft.LoraConfig(r=2, lora_dropout=0.2, target_modules=targets)
        return peft.get_peft_model(model, config).train()


class Compiled(Mode):
    def prepare(self, model: nn.Module) -> nn.Module:
        torch._dynamo.reset()
        return torch.compile(model, backend="eager")


class Distributed(Mode):
    """Of one process: all hooks and buckets are there, and nobody to wait for."""

    def prepare(self, model: nn.Module) -> nn.Module:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


MODES: dict[str, Mode] = {
    "plain": Mode(),
    "gradient checkpointing": Checkpointed(),
    "bf16 weights": Bf16Weights(),
    "bf16 autocast": Autocast(),
    "frozen block in eval": Frozen(),
    "LoRA": Lora(),
    "torch.compile": Compiled(),
    "DDP": Distributed(),
}


def bits(value: Any) -> Any:
    return value.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if isinstance(value, Tensor) else value


def train(name: str, mode: Mode, capture: Callable[[nn.Module], object]) -> tuple[nn.Module, bytes]:
    """Steps of several accumulated batches; `capture` is called at the start, among gradients that wait, and after each step.

    Gives the model, and everything that decides how it would train on: weights, buffers, optimizer and random states.
    """
    model = mode.prepare(build(name))
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    capture(model)
    for _ in range(N_STEPS):
        for _ in range(N_ACCUMULATED):
            output = mode.forward(model, batch(name))
            (output.float().square().mean() * (random.random() + float(np.random.rand()))).backward()
            capture(model)
        optimizer.step()
        optimizer.zero_grad()
        capture(model)
    weights = {key: bits(value) for key, value in [*model.named_parameters(), *model.named_buffers()]}
    moments = [{key: bits(value) for key, value in state.items()} for state in optimizer.state.values()]
    chance = (bits(torch.get_rng_state()), np.random.get_state()[1].tobytes(), random.getstate())
    return model, pickle.dumps((weights, moments, chance))


def traces(model: nn.Module) -> list[Any]:
    """Everything on a model that a forward pass may leave there: flags, attributes, hooks, buffers, waiting gradients."""
    found: list[Any] = []
    for module in model.modules():
        attributes = {key: id(value) for key, value in vars(module).items()}
        containers = {
            key: [*value]
            for key, value in vars(module).items()
            if isinstance(value, dict | list | set) and "_hooks" in key
        }
        found.append((module.training, attributes, containers))
    found += [(name, bits(buffer)) for name, buffer in model.named_buffers()]
    found += [(name, p.requires_grad, p.grad is None or bits(p.grad)) for name, p in model.named_parameters()]
    return found


def graphs() -> int:
    """Number of graphs that dynamo has made so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) if "torch._dynamo" in sys.modules else 0


def can_be_pickled(model: nn.Module) -> bool:
    try:
        pickle.dumps(model)
    except (AttributeError, TypeError, pickle.PicklingError):
        return False
    return True


def check(name: str, mode: Mode, path: Path) -> None:
    n_graphs = [graphs()]
    plain, expected = train(name, mode, lambda model: None)
    n_graphs.append(graphs())
    recorders: list[Recorder] = []

    def capture(model: nn.Module) -> None:
        if not recorders:
            settings = CaptureSettings(hidden="all", attention="all", weights=False)
            recorders.append(Recorder(model, probe_set(name), path, settings=settings).__enter__())
        before = traces(model)
        recorders[0].snapshot(len(recorders[0].steps))
        assert traces(model) == before

    model, found = train(name, mode, capture)
    recorders[0].close()
    n_graphs.append(graphs())
    assert found == expected, "weights, optimizer and random states, bit by bit"
    assert n_graphs[2] - n_graphs[1] == n_graphs[1] - n_graphs[0], "nothing is compiled anew"
    assert can_be_pickled(model) or not can_be_pickled(plain)
    check_snapshots(open_run(path))


def check_snapshots(run: Run) -> None:
    n_snapshots = 1 + N_STEPS * (N_ACCUMULATED + 1)
    assert run.steps == tuple(range(n_snapshots))
    for stack in run.stacks:
        layer = run[0].layers(stack)[-1]
        first, last = (run[step].hidden_states(layer, stack) for step in (0, n_snapshots - 1))
        assert np.isfinite(last).all()
        assert not np.array_equal(first, last), "the training did something"
        assert len(run[0].attention_layers(stack)) == len(run[0].layers(stack)) - 1


# One or two of each row and column in the quick tests; the whole product in the slow ones.
QUICK = {
    ("bert", "plain"), ("bert", "gradient checkpointing"), ("bert", "bf16 weights"), ("bert", "bf16 autocast"),
    ("bert", "frozen block in eval"), ("bert", "LoRA"), ("bert", "DDP"), ("albert", "frozen block in eval"), ("xlnet", "plain"),
    ("modernbert", "bf16 autocast"), ("gpt2", "LoRA"), ("llama", "gradient checkpointing"), ("gemma3", "plain"),
    ("t5", "gradient checkpointing"), ("bart", "frozen block in eval"), ("vit", "bf16 weights"),
}  # fmt: skip
CELLS = [
    pytest.param(name, mode, marks=() if (name, mode) in QUICK else pytest.mark.slow)
    for name in ARCHITECTURES
    for mode in MODES
    if not MODES[mode].left_out(name)
]
quietly = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of names that transformers and peft still use
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of dynamo itself
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # dynamo, of DeBERTa's
]
pytestmark = [pytest.mark.slow, *quietly]


@pytest.mark.parametrize(("name", "mode"), CELLS)
def test_training_ends_with_the_same_bits_and_nothing_is_left(name: str, mode: str, tmp_path: Path) -> None:
    try:
        check(name, MODES[mode], tmp_path / "run")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("part", ["_module_state", "_attention_implementations"])
def test_the_comparison_can_fail(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this part of the guard blocks stay in eval mode, or attention stays eager."""
    monkeypatch.setattr(f"dynprobe.capture.guard.{part}", nullcontext)
    with pytest.raises(AssertionError):
        check("bert", MODES["plain"], tmp_path / "run")


def test_a_mode_that_is_left_out_does_not_work_without_capture_either() -> None:
    with pytest.raises(RuntimeError, match="cannot be converted to type c10::BFloat16 without overflow"):
        train("deberta", MODES["bf16 autocast"], lambda model: None)
    for name in ARCHITECTURES:
        if MODES["gradient checkpointing"].left_out(name):
            with pytest.raises(ValueError, match="does not support"):
                Checkpointed().prepare(build(name))


def page() -> str:
    """The table between the two lines of COVERAGE.md."""
    reasons: list[str] = []
    lines = [f"| | {' | '.join([PADDING, *MODES])} |", "|---|" + "---|" * (len(MODES) + 1)]
    for name, config in ARCHITECTURES.items():
        cells = ["✓" if name != "vit" else _footnote("images have no padding", reasons)]
        cells += [_footnote(mode.left_out(name), reasons) if mode.left_out(name) else "✓" for mode in MODES.values()]
        lines.append(f"| {name} (`{config.model_type}`) | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", *notes])


def _footnote(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f"– ({reasons.index(reason) + 1})"


BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PADDING = "left and right padding"


def parts(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN + "\n\n")
    table, _, after = rest.partition("\n\n" + END)
    return before, table, after


def test_the_page_shows_what_is_tested() -> None:
    assert parts(PAGE.read_text(encoding="utf-8"))[1] == page(), "python -m tests.capture.test_matrix writes it anew"


def test_the_lists_are_those_of_the_zoo_and_of_the_page() -> None:
    wanted = {
        "albert", "bart", "bert", "deberta", "deberta-v2", "distilbert", "electra", "gemma", "gemma2", "gemma3_text", "gpt2",
        "gpt_neox", "llama", "mistral", "mixtral", "modernbert", "mpnet", "opt", "qwen2", "qwen3", "roberta", "t5", "vit",
        "xlnet",
    }  # fmt: skip
    assert {config.model_type for config in ARCHITECTURES.values()} == wanted
    assert {cell for cell in QUICK if cell[0] not in ARCHITECTURES or cell[1] not in MODES} == set()


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{BEGIN}\n\n{page()}\n\n{END}{after}", encoding="utf-8")
