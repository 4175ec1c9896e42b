"""The tasks that come with dynprobe, in an installed package or in a checkout."""

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

from dynprobe.errors import TaskDataError

SOURCE = "Built from WordNet 3.0, copyright 2006 Princeton University; see LICENSE-WordNet"
DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "hyp": "Does the second gloss define the direct hypernym of the noun that the first gloss defines?",
        "shift": "Is the sentence as written, or are two neighbouring words exchanged?",
        "supersense": "Which of ten topics does the noun belong to that the gloss defines?",
        "wic": "Do the two sentences use the word they share in the same sense?",
    }
)
_LICENSE = "LICENSE-WordNet"


def shipped_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with dynprobe, for :func:`load_task`.

    Examples
    --------
    >>> shipped_tasks()
    ('hyp', 'shift', 'supersense', 'wic')
    """
    return tuple(DESCRIPTIONS)


def shipped_license() -> str:
    """Licence under which the texts of the shipped tasks may be used.

    Raises
    ------
    TaskDataError
        When the installation is incomplete.
    """
    return shipped_file(_LICENSE).read_text(encoding="utf-8")


def shipped_file(name: str) -> Traversable | Path:
    """Find a shipped file: in the installed package, else in the checkout that the package stands in.

    Raises
    ------
    TaskDataError
        When it is in neither place.
    """
    data = Path(__file__).resolve().parents[2] / "data"
    places = (files("dynprobe.tasks") / "shipped" / name, data / "tasks" / name, data / name)
    for place in places:
        if place.is_file():
            return place
    raise TaskDataError(f"shipped file `{name}` is missing from this installation; install dynprobe again")
