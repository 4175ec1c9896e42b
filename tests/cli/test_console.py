"""Tables on terminals of any width, and without a terminal: numbers are never cut."""

import io

import pytest
from rich.console import Console

from dynprobe.cli import console

COLUMNS = ("task", "probe", "step 0", "step 50", "chance", "random", "change", "verdict")
LONG = "cannot tell; smallest detectable change 0.0283; not clearly above a random encoder at step 0"
ROWS = (
    ("hyp", "last layer", "0.652", "0.656", "0.500", "0.512", "0.00400 [-0.00578, 0.0157]", LONG),
    ("supersense", "best layer", "0.678", "0.676", "0.100", "0.392", "-0.00200 [-0.0127, 0.00758]", "degraded"),
)


def printed(monkeypatch: pytest.MonkeyPatch, *, width: int, terminal: bool, title: str = "a table") -> str:
    file = io.StringIO()
    out = Console(file=file, width=width, force_terminal=terminal, highlight=False, soft_wrap=True, color_system=None)
    monkeypatch.setattr(console, "out", out)
    console.show_table(title, COLUMNS, ROWS)
    return file.getvalue()


def test_without_a_terminal_every_row_is_one_line_and_no_wider_than_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, width=80, terminal=False)
    assert text == printed(monkeypatch, width=20, terminal=False) == printed(monkeypatch, width=500, terminal=False)
    for row in ROWS:
        line = next(line for line in text.splitlines() if row[0] in line)
        assert [cell.strip() for cell in line.strip("│").split("│")] == list(row)
    (frame,) = {len(line) for line in text.splitlines() if line[0] in "┏│└"}
    assert frame == sum(max(len(row[i]) for row in (COLUMNS, *ROWS)) + 3 for i in range(len(COLUMNS))) + 1


@pytest.mark.parametrize("width", [20, 60, 80, 81, 90, 120, 200])
def test_a_narrow_terminal_cuts_no_number_and_folds_reasons(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = printed(monkeypatch, width=width, terminal=True)
    assert "…" not in text
    for word in (word for row in ROWS for cell in row for word in cell.split() if any(map(str.isdigit, word))):
        assert word in text
    frames = [len(line) for line in text.splitlines() if line.startswith(("┏", "│", "└"))]
    assert all(length <= width for length in frames)
    assert bool(frames) == (width >= 80)
    if not frames:
        assert f"  verdict: {LONG}" in text
    if width >= 90:
        for word in LONG.split():
            assert word in text, "words stay whole where there is room for them"


def test_cells_and_titles_are_data(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, width=300, terminal=True, title="[red]a\x1b[31mb").startswith("[red]a\\x1b[31mb")
