"""One table of what the studies found, kept in the README: `python analyses/summary.py` writes it anew."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from dynprobe.errors import DynprobeError
from dynprobe.experiments.results import read_results

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- studies -->", "<!-- /studies -->"
WORKS = {
    "learning_dynamics": "Hao et al. 2020, learning dynamics of BERT fine-tuning",
    "isotropic_cls": "Zhou et al. 2021, IsoBN",
    "representational_collapse": "Aghajanyan et al. 2021, R3F and R4F",
    "few_sample_stability": "Zhang et al. 2021, few-sample fine-tuning",
}


def load_study(name: str) -> ModuleType:
    """The script of a study, as a module."""
    spec = importlib.util.spec_from_file_location(f"study_{name}", FOLDER / name / "study.py")
    if spec is None or spec.loader is None:
        raise DynprobeError(f"{FOLDER / name}: must hold study.py; got none")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> str:
    """Work, claim, what was measured, verdict; a study without results is said to be so."""
    lines = ["| work | claim | measured here | verdict |", "|---|---|---|---|"]
    for name, work in WORKS.items():
        results, link = FOLDER / name / "results" / "standard.jsonl", f"[{work}](analyses/{name}/README.md)"
        if not results.is_file():
            lines.append(f"| {work} | | not run yet: `make study STUDY={name}` | |")
            continue
        for found in load_study(name).summary(read_results(results)):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (link, *found)) + " |")
            link = ""
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with the table between its marks."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise DynprobeError(f"{README}: must hold the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{README}\n")
