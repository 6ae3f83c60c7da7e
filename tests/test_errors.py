"""How a script ends: in a line where somebody can mend something, and with nothing half written."""

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
