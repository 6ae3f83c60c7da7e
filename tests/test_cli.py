"""The command ``bmvtrack``, and ``python -m bmvtrack``."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import cv2
import gymnasium
import pytest
import stable_baselines3
import torch
from folders import write_tree

import bmvtrack
from agents import cli
from bmvtrack import __main__ as quickstart
from bmvtrack.bundled import DEFAULT_WEIGHTS, weights_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command with arguments; gives its status, output and error output."""

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["bmvtrack", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return start


def test_the_command_is_installed_and_exits_with_the_shell_s_status():
    (entry,) = entry_points(group="console_scripts", name="bmvtrack")
    assert entry.load() is cli.main
    program = Path(sys.executable).with_name("bmvtrack")
    result = subprocess.run(
        [program, "fit-prior", "--root", "nowhere"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: no folder nowhere")
    assert result.stderr.count("\n") == 1


def test_output_that_nobody_reads_is_no_traceback():
    program = [sys.executable, ROOT / "scripts" / "fit_prior.py", "--help"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        script.stdout.close()  # before a word is written
        assert script.stderr.read() == b""
    assert script.returncode == 141


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['bmvtrack', '--help']\n"
        "from agents.cli import main\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'cv2', 'matplotlib', 'tyro'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.endswith("set()\n")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(run, arguments):
    status, output, _ = run(*arguments)
    assert status == 0
    for word, command in cli.COMMANDS.items():
        assert f"  {word} " in output
        assert command.summary in output
    assert max(map(len, output.splitlines())) <= 80


def test_version(run):
    assert run("--version")[:2] == (0, f"bmvtrack {bmvtrack.__version__}\n")


@pytest.mark.parametrize("word", sorted(cli.COMMANDS))
def test_help_of_a_command_teaches(run, word):
    status, output, _ = run(word, "--help")
    assert status == 0
    assert output.startswith(f"usage: bmvtrack {word} ")
    assert cli.COMMANDS[word].summary in output
    description, _, rest = output.partition("\n\nExamples:\n")
    assert max(map(len, description.splitlines())) <= 80
    assert rest.startswith(f"    bmvtrack {word}")
    assert "(default:" in rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly",), "invalid choice: 'fly'"),
        (("evaluate", "--wings"), "--wings"),
        (("evaluate", "--root", "nowhere"), "error: no folder nowhere"),
        (("fit-prior",), "--root"),
        (("fit-prior", "--root", "nowhere"), "error: no folder nowhere"),
        (("track", "nowhere.mp4", "--box", "1,2,3,4"), "error: "),
        (("track", "nowhere.mp4"), "error: no object"),
        (("pretrain", "--data", "youtube"), "error: unknown data 'youtube'"),
        (("train", "--data", "youtube"), "error: unknown data 'youtube'"),
    ],
)
def test_mistakes_end_in_a_message_and_status_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, output, error = run(*arguments)
    assert status == 2
    assert output == ""
    assert message in error
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_130(run, monkeypatch):
    def interrupted(word, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupted)
    assert run("track", "clip.mp4") == (130, "", "interrupted\n")


def test_commands_do_what_scripts_do(run, run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(write_tree(tmp_path, length=8))
    status, output, _ = run("fit-prior", "--root", ".", "--out", "prior.json")
    assert status == 0
    assert output.endswith("written to prior.json\n")
    assert json.loads(Path("prior.json").read_text())["coordinates"] == "object"
    result = run_script("fit_prior.py", "--root", ".")
    assert result.printed + "written to prior.json\n" == output
    status, _, _ = run("evaluate", "--root", ".", "--trackers", "static", "--out", "out")
    assert status == 0
    assert json.loads(Path("out/summary.json").read_text())["trackers"].keys() == {"static"}


def test_the_quickstart_says_what_is_there(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bmvtrack"])
    quickstart.main()
    lines = capsys.readouterr().out.splitlines()
    versions = {
        "bmvtrack": bmvtrack.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "stable-baselines3": stable_baselines3.__version__,
        "opencv": cv2.__version__,
    }
    rows = [line.split() for line in lines]
    assert all([name, number] in rows for name, number in versions.items())
    bundled = sorted(
        p.parent.name for p in weights_folder(DEFAULT_WEIGHTS).parent.glob("*/config.json")
    )
    assert sorted(quickstart.weights()) == bundled
    assert all(
        20 < len(text) < 100 and text.endswith(".") for text in quickstart.weights().values()
    )


def test_the_commands_to_try_are_commands(monkeypatch):
    called = {}
    for word, command in cli.COMMANDS.items():
        module, name = command.function.split(":")
        monkeypatch.setattr(
            f"{module}.{name}", lambda options, word=word: called.update({word: options})
        )
    for line, _ in quickstart.TRY:
        program, word, *arguments = line.split()
        assert program == "bmvtrack"
        cli.run_command(word, arguments)
        called[word].check()
    assert len(called) == 3


def test_the_quickstart_hands_arguments_on(monkeypatch, capsys):
    for arguments, status in ((["--version"], 0), (["nonsense"], 2)):
        monkeypatch.setattr(sys, "argv", ["bmvtrack", *arguments])
        with pytest.raises(SystemExit) as stop:
            quickstart.main()
        assert stop.value.code == status
    assert bmvtrack.__version__ in capsys.readouterr().out
