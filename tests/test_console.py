"""Options as a terminal shows them."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from bmvtrack.console import parse_options


@dataclass
class Parent:
    steps: int = 1
    """how many steps, told in a text
    that goes on (the source breaks it) `here`,
    and there"""


@dataclass
class Child(Parent):
    name: Annotated[str, tyro.conf.arg(metavar="NAME")] = "x"
    """a name, which keeps
    its own placeholder"""


def test_help_texts_are_wrapped_to_the_terminal_and_not_as_the_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for _ in range(2):
        with pytest.raises(SystemExit):
            parse_options(Child, "What it does.", "program", ["--help"])
        shown = capsys.readouterr().out
        assert (
            "how many steps, told in a text that goes on (the source breaks it) `here`, and there"
            in shown
        )
        assert "--name NAME" in shown
        assert "a name, which keeps its own placeholder" in shown
    assert parse_options(Child, None, "program", ["--steps", "3"]) == Child(steps=3)
