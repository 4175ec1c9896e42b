"""A page from a template and values: every number in it comes from results."""

import re
from collections.abc import Mapping

from dynprobe.errors import DynprobeError

_PLACE = re.compile(r"\{\{ *([a-z0-9_]+) *\}\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values where the template names them.

    Parameters
    ----------
    template
        Text with places such as ``{{ table }}``.
    values
        What to put there, by name.

    Raises
    ------
    DynprobeError
        When a place has no value, or a value no place: nothing that was measured is left out unnoticed.

    Examples
    --------
    >>> fill("n = {{ n }}", {"n": "3"})
    'n = 3'
    """
    places = set(_PLACE.findall(template))
    if places != set(values):
        missing, unused = sorted(places - set(values)), sorted(set(values) - places)
        raise DynprobeError(
            f"the template must have the places that have values; without value {missing}, unused {unused}"
        )
    return _PLACE.sub(lambda match: values[match.group(1)], template)
