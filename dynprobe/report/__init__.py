"""A result as one self-contained HTML page, JSON, figures and tables for a terminal.

Nothing here opens a run or a model: what a report says, the result says.
"""

from dynprobe.report.drawing import draw
from dynprobe.report.knowledge_tables import knowledge_tables
from dynprobe.report.page import render_html
from dynprobe.report.picture import Ink, Picture
from dynprobe.report.pictures import pictures
from dynprobe.report.table import TerminalTable
from dynprobe.report.terminal import terminal_tables
from dynprobe.report.writing import write_json, write_report

__all__ = [
    "Ink",
    "Picture",
    "TerminalTable",
    "draw",
    "knowledge_tables",
    "pictures",
    "render_html",
    "terminal_tables",
    "write_json",
    "write_report",
]
