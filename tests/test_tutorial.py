"""docs/tutorial.md, run as it is written."""

import dataclasses
import pkgutil
import re
import runpy
import shlex
import sys
from pathlib import Path

from agents import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands(block):
    """The commands of a block as the shell takes them apart."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def start(command, monkeypatch):
    """Run a command in this process: torch is imported once, and not for each."""
    program, *arguments = command
    if program == "bmvtrack":
        monkeypatch.setattr(sys, "argv", command)
        cli.main()
        return
    assert program == "python"
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def test_the_tutorial_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = []
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/tutorial.md", "exec"), {})
            continue
        for command in commands(block):
            start(command, monkeypatch)
            words.append(command[1])
    assert words[:4] == ["fit-prior", "pretrain", "train", "evaluate"]
    for made in (
        "prior.json",
        "runs/encoder/best/model.safetensors",
        "runs/agent/best/agent.safetensors",
        "runs/evaluation/summary.json",
        "runs/evaluation/videos/agent/elk.mp4",
        "runs/evaluation/success.png",
        "posterior.png",
        "curves.png",
        "runs/video/elk-tracked.mp4",
        "runs/video/elk-tracked.html",
    ):
        assert (tmp_path / made).is_file(), made


def test_options_that_are_only_mentioned_exist():
    known = {"--" + word for word in ("frames", "priors", "help")}
    for command in cli.COMMANDS.values():
        fields = dataclasses.fields(pkgutil.resolve_name(command.options))
        known |= {"--" + field.name.replace("_", "-") for field in fields}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert mentioned <= known
    assert len(mentioned) > 20
