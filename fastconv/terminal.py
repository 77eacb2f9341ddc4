"""What commands show: tables and a progress bar, coloured on a terminal where rich is installed, plain otherwise."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

COLOURS = {"ok": "green", "FAILED": "bold red"}


def show(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", left: int = 1) -> None:
    """Print a table; the first ``left`` columns are text, the others numbers, aligned to the right.

    Columns with nothing in them are left out.
    """
    used = [place for place in range(len(headers)) if any(row[place] for row in rows)]
    headers, rows = [headers[place] for place in used], [[row[place] for place in used] for row in rows]
    if _is_rich(sys.stdout):
        _show_rich(headers, rows, title, left)
    else:
        print(plain(headers, rows, title, left), flush=True)


def plain(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", left: int = 1) -> str:
    """The table as aligned text."""
    widths = [max(map(len, column)) for column in zip(headers, *rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (headers, *rows)
    ]
    return "\n".join([title] * bool(title) + lines)


def _show_rich(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str, left: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title) if title else None, title_justify="left")
    for place, header in enumerate(headers):
        drawn.add_column(header, justify="left" if place < left else "right")
    for row in rows:
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(drawn)


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, where that is a terminal; call what it yields before every step, with its name.

    It is drawn at these calls only: a thread that redraws it would disturb what is timed in between.
    """
    if not _is_rich(sys.stderr):
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), TimeRemainingColumn(compact=True), "{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=total, completed=-1)
        bar.refresh()
        yield lambda text: bar.update(task, advance=1, description=text, refresh=True)


def _is_rich(stream: TextIO) -> bool:
    return stream.isatty() and importlib.util.find_spec("rich") is not None


def size(count: float) -> str:
    """Bytes for people: 512 B, 1.5 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1024 or unit == "GB":
            break
        count /= 1024
    return f"{count:.{0 if count >= 100 else 1}f}".removesuffix(".0") + f" {unit}"
