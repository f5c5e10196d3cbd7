"""Cells and tables in Markdown."""

import statistics

from gralora_diffusion.evaluation.score_rows import NO_INTERVAL
from gralora_diffusion.evaluation.statistics import p_value, t_interval

PAIRED_HEAD = ["mean", "95 % interval", "p"]


def markdown(head: list[str], rows: list[list]) -> str:
    """A table whose columns line up, numbers to the right; empty without rows."""
    if not rows:
        return ""
    cells = [list(map(str, row)) for row in [head, *rows]]
    columns = list(zip(*cells, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    is_text = [has_words(column[1:]) for column in columns]

    def line(row: list[str]) -> str:
        padded = []
        for cell, width, text in zip(row, widths, is_text, strict=True):
            padded.append(cell.ljust(width) if text else cell.rjust(width))
        return f"| {' | '.join(padded)} |"

    rule = []
    for width, text in zip(widths, is_text, strict=True):
        rule.append("-" * (width + 2) if text else "-" * (width + 1) + ":")
    return "\n".join([line(cells[0]), f"|{'|'.join(rule)}|", *map(line, cells[1:])])


def has_words(cells: tuple[str, ...]) -> bool:
    return any(cell[:1].isalpha() and cell != NO_INTERVAL for cell in cells)


def interval_cell(interval: tuple[float, float] | None, form: str = ".4f") -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def interval_of(values: list[float], form: str = ".4f") -> str:
    """Student's interval of their mean as a cell; empty without values."""
    return NO_INTERVAL if len(values) == 1 else interval_cell(t_interval(values), form)


def number_cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def paired_cells(values: list[float]) -> list[str]:
    """PAIRED_HEAD of differences."""
    return [
        f"{statistics.mean(values):+.4f}",
        interval_of(values, "+.4f"),
        number_cell(p_value(values), ".3f"),
    ]
