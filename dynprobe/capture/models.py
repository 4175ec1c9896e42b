"""Loading a saved model for measurement: from a folder, a name, an adapter, or an installed package that carries weights."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import UsageError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH, ProbeSet

_PACKAGE = "package:"
_ADAPTER = "adapter_config.json"
_KIND_OF_TASK = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
}
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def resolve_model(name: str) -> str:
    """Folder of a model, or its name on the model hub.

    Parameters
    ----------
    name
        A folder; ``package:NAME`` for the weights inside an installed Python package; or a name on the model hub.

    Raises
    ------
    UsageError
        When the package is not installed or holds no model, or the folder holds none.
    """
    if name.startswith(_PACKAGE):
        return str(_folder_in_package(name.removeprefix(_PACKAGE)))
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", _ADAPTER)):
        raise UsageError(f"{name}: a model folder must hold config.json or {_ADAPTER}; got {sorted(_names(path))[:6]}")
    if not path.exists() and name.startswith((".", "/", "~")):
        raise UsageError(
            f"{name}: a model must be a folder, package:NAME or a name on the model hub; got nothing there"
        )
    return str(path) if path.is_dir() else name


def load_model(name: str) -> nn.Module:
    """A saved model with the head it was saved with, or a PEFT adapter on its base.

    Parameters
    ----------
    name
        As for :func:`resolve_model`.

    Raises
    ------
    UsageError
        When there is no model of that name, or PEFT is needed and not installed.
    """
    place = resolve_model(name)
    if (Path(place) / _ADAPTER).is_file():
        return _load_adapter(place)
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        named = getattr(transformers, (config.architectures or ["AutoModel"])[0], None)
        is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
        kind: Any = named if is_model else transformers.AutoModel
        return kind.from_pretrained(place, config=config, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: must be a model that transformers can load; {error}") from error


def load_tokenizer(*names: str) -> Any:
    """The tokenizer of the first of several models that has one.

    Raises
    ------
    UsageError
        When none has one.
    """
    for name in names:
        place = resolve_model(name)
        if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in _TOKENIZER_FILES):
            continue  # transformers would make an empty one, to which every word is unknown
        try:
            return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError):
            continue
    raise UsageError(f"one of {list(names)} must come with a tokenizer; got none. Save the tokenizer beside the model")


def capture_pair(
    base: str,
    tuned: str,
    texts: Sequence[tuple[str, ...]],
    folder: Path,
    *,
    settings: CaptureSettings | None = None,
    max_length: int = DEFAULT_MAX_LENGTH,
) -> tuple[Path, Path]:
    """Capture two saved models on the same texts, without any training: one snapshot each.

    Parameters
    ----------
    base, tuned
        As for :func:`resolve_model`.
    texts
        One tuple of one or two texts per example.
    folder
        Where the two run directories are made.
    settings, max_length
        What to keep; number of tokens of an example.

    Returns
    -------
    tuple of pathlib.Path
        The two run directories.
    """
    probe = ProbeSet.from_texts(texts, load_tokenizer(tuned, base), max_length=max_length)
    paths = []
    for role, name in (("base", base), ("tuned", tuned)):
        path = folder / role
        facts = {"source": name}
        with Recorder(load_model(name), probe, path, settings=settings, max_steps=0, facts=facts) as recorder:
            recorder.snapshot(0)
        paths.append(path)
    return paths[0], paths[1]


def _load_adapter(place: str) -> nn.Module:
    try:
        import peft  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise UsageError(f"{place}: holds a PEFT adapter; install it with `pip install dynprobe[peft]`") from error
    try:
        config = peft.PeftConfig.from_pretrained(place)
        base_name = resolve_model(str(config.base_model_name_or_path))
        kind = _KIND_OF_TASK.get(config.task_type, transformers.AutoModel)
        labels = {"num_labels": n} if (n := _n_labels(peft.utils.load_peft_weights(place, device="cpu"))) else {}
        base = kind.from_pretrained(base_name, trust_remote_code=False, **labels)
        return peft.PeftModel.from_pretrained(base, place).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{place}: must be a PEFT adapter whose base model can be loaded; {error}") from error


def _n_labels(weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the head that was trained with an adapter; its base does not know of it."""
    return next((len(value) for name, value in weights.items() if name.endswith(_HEADS)), None)


def _folder_in_package(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"the package {package!r} must be installed; `make assets` installs the pretrained weights of the demo"
        ) from None
    configs = [Path(str(file.locate())) for file in files if file.name == "config.json"]
    models = [path.parent for path in configs if any(path.parent.glob("*.safetensors"))]
    if not models:
        raise UsageError(f"the package {package!r} must hold a model with safetensors weights; got none")
    return models[0]


def _names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]
