"""How a script ends: in a line where somebody can mend something, and with nothing half written."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from bmvtrack.errors import UserError, run_script


def ending(*, raising: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def main() -> None:
        raise raising

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    return stop.value.code, capsys.readouterr().err


def test_what_a_person_can_mend_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error, line in (
        (UserError("no folder x"), "error: no folder x\n"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied\n"),
    ):
        assert ending(raising=error, capsys=capsys) == (2, line)


def test_other_errors_keep_their_traceback() -> None:
    def main() -> None:
        raise OSError("no file is named here")

    with pytest.raises(OSError, match="no file is named here"):
        run_script(main)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_batch_system_leaves_nothing_half_written(tmp_path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from bmvtrack.errors import run_script
        from bmvtrack.files import atomic_file

        def main():
            with atomic_file(Path(sys.argv[1]) / "out.txt") as temporary:
                temporary.write_text("half")
                print("begun", flush=True)
                time.sleep(60)

        run_script(main)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def finished(statement: str, *start: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program whose main function is one statement, as the last arguments of ``start``."""
    program = f"from bmvtrack.errors import run_script; run_script(lambda: {statement})"
    command = [*start, sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.skipif(sys.platform == "win32", reason="its shell cannot close the output")
def test_nobody_need_listen() -> None:
    done = finished("print('done')", "sh", "-c", '"$@" >&-', "sh")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict", "utf-8:strict"])
def test_what_the_output_cannot_represent_is_printed_all_the_same(encoding: str) -> None:
    done = finished(r"print('\u03c3 of caf\udce9')", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("of caf\\udce9\n")
