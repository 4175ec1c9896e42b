"""The table of README.md, computed from the task files so that no number is typed by hand."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dynprobe.tasks import Baseline, Task, baselines, load_task

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
TASKS = ("supersense", "hyp", "wic", "shift")


def update_readme(readme: Path, folder: Path) -> None:
    """Replace what stands between the markers of the file."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(_lines(folder)) + "\n"
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _lines(folder: Path) -> Iterator[str]:
    yield "| task | train / validation / test | classes | file |"
    yield "|---|---|---|---|"
    tasks = {name: load_task((folder / f"{name}.csv.gz").resolve()) for name in TASKS}
    for name, task in tasks.items():
        sizes = " / ".join(str(len(split)) for split in task.splits.values())
        kilobytes = (folder / f"{name}.csv.gz").stat().st_size / 1000
        yield f"| `{name}` | {sizes} | {_balance(task)} | {kilobytes:.0f} kB |"
    yield ""
    yield "| task | classifier | sees | test accuracy | 95 % interval |"
    yield "|---|---|---|---|---|"
    for name, task in tasks.items():
        yield from (_baseline_line(name, found) for found in baselines(task))


def _balance(task: Task) -> str:
    """Number of classes and share of the rarest and the most frequent over all splits."""
    count = Counter(int(label) for split in task.splits.values() for label in split.labels)
    low, high = (f(count.values()) / sum(count.values()) for f in (min, max))
    names = ", ".join(task.label_names or ())
    share = f"{low:.3f} each" if low == high else f"{low:.3f} to {high:.3f}"
    return f"{task.n_classes}: {names} ({share})"


def _baseline_line(task: str, found: Baseline) -> str:
    seen = " + ".join(f"`{column}`" for column in found.columns) or "nothing"
    return f"| `{task}` | {found.name} | {seen} | {found.accuracy:.3f} | {found.low:.3f} to {found.high:.3f} |"
