"""What each measure costs beside NumPy, SciPy and scikit-learn: speed, multiples of one matrix product, memory, error.

Run: python benchmarks/metrics.py [--only js --repeats 5 --threads 1 --markdown]. Both sides of a row run in one process, in
turn, and the ratios are medians over the turns; so they hold on a busy machine, where seconds do not.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
from measures import CASES, Case, Data
from threadpoolctl import threadpool_limits

# A slower row is not repeated once it has taken this long.
SECONDS_PER_ROW = 120.0

Pair = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """What was measured of one case; each pair is ours, then theirs.

    Attributes
    ----------
    speed, lowest_speed, highest_speed
        How many times as fast ours is: the median and the ends over the turns.
    products
        Time in multiples of one fp32 product, width x rows x width.
    seconds
        Medians over the turns.
    error
        Largest over the result, of the kind that `error_of` names.
    megabytes
        Highest memory above what was held before the call; the result is included.
    """

    name: str
    peer: str
    speed: float
    lowest_speed: float
    highest_speed: float
    products: Pair
    seconds: Pair
    error: Pair
    error_of: str
    turns: int
    megabytes: tuple[float | None, float | None]


def main() -> None:
    """Measure the cases asked for and print them."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    with threadpool_limits(limits=options.threads):
        data = Data(options.rows, options.width)
        chosen = {name: build(data) for name, build in CASES.items() if any(part in name for part in options.only)}
        if not chosen:
            sys.exit(f"--only must name parts of {', '.join(CASES)}; got {options.only}")
        machine = describe_machine()
        print("\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n", flush=True)
        # Children are forked before this process has started any OpenMP thread, which would not survive in them.
        memory = {} if options.no_memory else {name: peaks(name, case) for name, case in chosen.items()}
        rows = []
        for name, case in chosen.items():
            found = measure(case, data, repeats=options.repeats)
            rows.append(Row(name, case.peer, **found, megabytes=memory.get(name, (None, None))))
            print(f"{name}: {rows[-1].speed:.2f} times as fast as {case.peer}", file=sys.stderr, flush=True)
    print("\n".join(markdown(rows) if options.markdown else text(rows)))
    if options.json:
        found = {"machine": machine, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(case: Case, data: Data, *, repeats: int) -> dict[str, Any]:
    """Time both sides in turn, each turn beside a product of its own, after one call that is not counted."""
    error = case.error(case.ours()), case.error(case.theirs())
    data.product()
    ours, theirs, product = [], [], []
    begin = time.perf_counter()
    while len(ours) < repeats and time.perf_counter() - begin < SECONDS_PER_ROW:
        product.append(seconds(data.product))
        ours.append(seconds(case.ours))
        theirs.append(seconds(case.theirs))
    speeds = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "speed": statistics.median(speeds),
        "lowest_speed": min(speeds),
        "highest_speed": max(speeds),
        "products": tuple(statistics.median(np.divide(side, product)) for side in (ours, theirs)),
        "seconds": (statistics.median(ours), statistics.median(theirs)),
        "error": error,
        "error_of": case.error_of,
        "turns": len(ours),
    }


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peaks(name: str, case: Case) -> tuple[float | None, float | None]:
    """Highest memory of either side above what was held before the call, in MB, each in a process of its own."""
    small = CASES[name](Data(512, 64))
    return _peak(small.ours, case.ours), _peak(small.theirs, case.theirs)


def _peak(warm: Callable[[], object], function: Callable[[], object]) -> float | None:
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(warm, function, sender))
    child.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError:  # the child died, such as for want of memory
        return None
    finally:
        child.join()


def _report_peak(warm: Callable[[], object], function: Callable[[], object], sender: Connection) -> None:
    warm()  # what the libraries load and set up at their first call is no part of the measure
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def describe_machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "processor": f"{_processor()}, {multiprocessing.cpu_count()} cores, torch threads {torch.get_num_threads()}",
        "load before": Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "unknown",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, np, scipy, sklearn)),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


HEADINGS = (
    "measure", "against", "times as fast", "range", "products", "theirs",
    "extra MB", "theirs", "error", "theirs", "of", "seconds", "theirs",
)  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.peer,
        f"{row.speed:.2f}",
        f"{row.lowest_speed:.2f}-{row.highest_speed:.2f}",
        *(f"{time:.1f}" for time in row.products),
        *("" if size is None else f"{size:.0f}" for size in row.megabytes),
        *(f"{error:.0e}" for error in row.error),
        row.error_of,
        *(f"{time:.3g}" for time in row.seconds),
    )


def markdown(rows: list[Row]) -> Iterator[str]:
    """The table as Markdown."""
    for cells in (HEADINGS, ("---",) * len(HEADINGS), *map(_cells, rows)):
        yield f"| {' | '.join(cells)} |"


def text(rows: list[Row]) -> Iterator[str]:
    """The table in aligned columns."""
    table = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="observations of each representation")
    parser.add_argument("--width", type=int, default=768, help="features of each representation")
    parser.add_argument("--repeats", type=int, default=5, help="turns, of which the median is printed")
    parser.add_argument("--threads", type=int, help="threads of every library (default: what they choose)")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", default=[""], help="only cases whose name contains one of these"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out, which takes one more call each")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", metavar="FILE", help="also write every figure to a file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
