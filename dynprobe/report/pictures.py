"""Result → pictures, as data: which figures a report holds, in order."""

from collections.abc import Iterable

from dynprobe.report.curves import log_pictures
from dynprobe.report.heatmaps import head_pictures, layer_step_pictures
from dynprobe.report.knowledge_pictures import knowledge_pictures
from dynprobe.report.layer_lines import layer_pictures, step_pictures
from dynprobe.report.matrices import matrix_pictures
from dynprobe.report.picture import Picture
from dynprobe.report.readings import Readings, read
from dynprobe.report.sections import SECTIONS, metric_order, section_of
from dynprobe.result import MetricInfo, Result


def pictures(result: Result) -> tuple[Picture, ...]:
    """All figures of a result, as data, in the order of the report.

    Parameters
    ----------
    result
        Any result. Metrics that this package does not know are drawn too, over layers or over steps.

    Returns
    -------
    tuple of Picture
        Empty where nothing was measured and no array is a matrix.
    """
    readings = read(result)
    found = [*log_pictures(result.provenance.get("scalars"), readings)]
    for name in sorted(readings.rows["metric"].dropna().unique(), key=metric_order):
        found += _metric_pictures(readings, str(name), result.metrics[str(name)])
    found += matrix_pictures(result.arrays, readings)
    order = [section.key for section in SECTIONS]
    return tuple(sorted(found, key=lambda picture: order.index(picture.section)))


def _metric_pictures(readings: Readings, metric: str, info: MetricInfo) -> Iterable[Picture]:
    rows = readings.rows[readings.rows["metric"].eq(metric).fillna(value=False).astype(bool)]
    if section_of(metric) == "knowledge":
        yield from knowledge_pictures(rows, metric, info, readings)
        return
    heads = rows["head"].notna()
    layers = rows["layer"].notna() & ~heads
    yield from step_pictures(rows[~layers & ~heads], metric, info, readings)
    yield from layer_pictures(rows[layers], metric, info, readings)
    yield from layer_step_pictures(rows[layers], metric, info)
    yield from head_pictures(rows[heads], metric, info)
