"""`dynprobe compare BASE TUNED --texts FILE`: two saved models, without any training run."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from dynprobe.capture.models import capture_pair, load_model, load_tokenizer, resolve_model
from dynprobe.capture.settings import CaptureSettings
from dynprobe.cli.main import entry_point
from dynprobe.errors import UsageError
from dynprobe.run import open_run

TEXTS = [f"the {word} of a {other}" for word in ("cat", "dog", "fish", "bird") for other in ("man", "boy", "girl")]


@pytest.fixture
def tuned_model(saved_model: Path, tmp_path: Path) -> Path:
    """The same model with a classifier, its upper block replaced."""
    path = tmp_path / "tuned"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(saved_model, num_labels=3)
    for parameter in model.bert.encoder.layer[1].parameters():
        parameter.data = torch.randn_like(parameter)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(saved_model).save_pretrained(path)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dynprobe", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry_point()
    return int(ended.value.code or 0)


def test_two_saved_models_are_measured_and_compared(
    saved_model: Path, tuned_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, numbers = tmp_path / "texts.txt", tmp_path / "numbers.json"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ("compare", saved_model, tuned_model, "--texts", texts, "--json", numbers, "--keep", tmp_path / "runs")
    assert command(monkeypatch, *arguments) == 0
    result = json.loads(numbers.read_text(encoding="utf-8"))
    rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
    moved = {
        row["layer"]: row["value"]
        for row in rows
        if row["metric"] == "linear_cka_similarity" and row["comparison"] == "between"
    }
    assert moved[1] == pytest.approx(1.0, abs=1e-6), "the lower block is the same"
    assert moved[2] < 1 - 1e-4, "the upper block moved"
    assert open_run(tmp_path / "runs" / "tuned")[0].outputs() is not None


def test_models_without_texts_are_explained(
    saved_model: Path, tuned_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "compare", saved_model, tuned_model) == 2
    assert "Give --texts FILE" in capsys.readouterr().err


def test_a_model_keeps_the_head_it_was_saved_with(saved_model: Path, tuned_model: Path) -> None:
    assert type(load_model(str(saved_model))) is type(AutoModel.from_pretrained(saved_model))
    assert load_model(str(tuned_model)).num_labels == 3


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # names that peft still uses
def test_an_adapter_is_put_on_its_base(saved_model: Path, tmp_path: Path) -> None:
    import peft

    model = AutoModelForSequenceClassification.from_pretrained(saved_model, num_labels=2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.5
    adapted.save_pretrained(tmp_path / "adapter")
    base, tuned = capture_pair(
        str(saved_model), str(tmp_path / "adapter"), [(t,) for t in TEXTS], tmp_path / "runs",
        settings=CaptureSettings(hidden="all"),
    )  # fmt: skip
    a, b = open_run(base)[0], open_run(tuned)[0]
    assert (a.hidden_states(0) == b.hidden_states(0)).all()
    assert (a.hidden_states(1) != b.hidden_states(1)).any()


def test_names_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be installed"):
        resolve_model("package:no-such-package")
    with pytest.raises(UsageError, match="must hold a model with safetensors weights"):
        resolve_model("package:numpy")
    with pytest.raises(UsageError, match=r"a model folder must hold config.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(UsageError, match="got nothing there"):
        resolve_model(str(tmp_path / "nowhere"))
    AutoConfig.for_model("bert").save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="must come with a tokenizer"):
        load_tokenizer(str(tmp_path / "bare"))
