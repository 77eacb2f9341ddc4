"""Tables and sizes that commands print."""

from __future__ import annotations

import pytest

from fastconv import terminal


def test_table_is_aligned_and_leaves_out_empty_columns(capsys):
    terminal.show(("name", "unused", "time"), [("a", "", "1 ms"), ("longer", "", "12 ms")], "Title")
    assert capsys.readouterr().out.splitlines() == ["Title", "name     time", "a        1 ms", "longer  12 ms"]


def test_table_is_drawn_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(terminal, "_is_rich", lambda stream: True)
    terminal.show(("name", "verdict"), [("relu", "ok"), ("tanh", "FAILED")])
    out = capsys.readouterr().out
    assert "│ relu" in out
    assert "FAILED" in out


def test_steps_are_drawn_on_a_terminal_only(capsys, monkeypatch):
    with terminal.steps(2) as advance:
        advance("first")
    assert capsys.readouterr().err == ""
    pytest.importorskip("rich")
    monkeypatch.setattr(terminal, "_is_rich", lambda stream: True)
    with terminal.steps(2) as advance:
        advance("first")


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (512, "512 B"), (1536, "1.5 KB"), (32768, "32 KB"), (25.6 * 2**20, "25.6 MB"), (3 << 40, "3072 GB")])
def test_sizes_are_readable(count, text):
    assert terminal.size(count) == text
