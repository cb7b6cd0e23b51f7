"""The bar and the lines that tell how far many requests have come."""

from __future__ import annotations

import re

import pytest

from ggpy.progress import requests_bar


def test_lines_tell_every_tenth() -> None:
    lines: list[str] = []
    with requests_bar(40, 10, lines.append) as advance:
        for _ in range(30):
            advance(7)
    assert [re.sub(r" +\S+ tok/s$", "", line) for line in lines] == [
        f"{10 * i:3d}%  {4 * i} of 40" for i in range(3, 11)
    ]


def test_nothing_is_said_without_a_terminal_and_a_listener(capsys: pytest.CaptureFixture[str]) -> None:
    with requests_bar(4) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with requests_bar(4, 1) as advance:
        advance(1)
    assert "2/4" in capsys.readouterr().err
