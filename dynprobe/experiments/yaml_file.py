"""Read a YAML file in which each name is given once: of two the last would win without a word."""

from pathlib import Path
from typing import Any

import yaml

from dynprobe.errors import UsageError

_MAX_BYTES = 2**20
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """What a YAML file says; it can make nothing but plain values.

    Parameters
    ----------
    path
        The file, of at most 1 MiB.

    Raises
    ------
    UsageError
        When there is no such file, it is too large or no YAML, or a name is given twice in one mapping; says the line.
    """
    if not path.is_file():
        raise UsageError(f"{path}: must be an experiment file (YAML); got nothing there")
    if path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"{path}: an experiment file must be smaller than {_MAX_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        _require_once(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: must be YAML; {error}") from error


def _require_once(root: yaml.Node | None, path: Path) -> None:
    """Refuse a name that a mapping has twice; one that `<<` brings from elsewhere may be given anew."""
    waiting, met = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in met or not isinstance(node, yaml.CollectionNode):
            continue
        met.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            waiting += [key, value]
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UsageError(
                    f"{path}, line {line}: `{key.value:.60}` must be given once; it stands in line {lines[key.value]} "
                    "already. Remove one of them, or give it another name"
                )
            lines[key.value] = line
