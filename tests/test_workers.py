"""Work shared among processes."""

import os
import subprocess
import sys
import time
from dataclasses import fields

import psutil
import pytest
from banks import build, several, video

from bmvtrack.data import workers
from bmvtrack.data.bank import build_bank
from bmvtrack.data.workers import mapped
from bmvtrack.errors import UserError


@pytest.fixture
def by_processes(monkeypatch):
    """Let two processes work, however little there is to do."""
    monkeypatch.setattr(workers, "_FEWEST", 2)
    monkeypatch.setattr(workers, "_worker_count", lambda pieces: 2)


def test_processes_build_the_bank_that_threads_build(by_processes):
    sequences = [video(), several(), video(), several(), video()]
    *counts, bank = build_bank(sequences, 100, lambda: sequences)
    assert counts == [1, 2, 3, 4, 5]
    alone = build(*sequences, longest_side=100)
    for field in fields(bank):
        assert (getattr(bank, field.name) == getattr(alone, field.name)).all(), field.name


def test_what_a_worker_refuses_is_refused_here(by_processes):
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        list(mapped(time.sleep, [-1.0], lambda: [-1.0], 1))


def test_a_killed_worker_is_named(by_processes):
    with pytest.raises(UserError, match=r"one of 2 processes was killed.*LOKY_MAX_CPU_COUNT"):
        list(mapped(os._exit, [1], lambda: [1], 1))


@pytest.mark.parametrize(
    ("cores", "ranks", "pieces", "expected"),
    [(64, 1, 10**6, 16), (8, 1, 10**6, 8), (8, 4, 10**6, 2), (8, 1, 4999, 4), (8, 1, 30, 0)],
)
def test_there_are_as_many_workers_as_cores_and_work(monkeypatch, cores, ranks, pieces, expected):
    monkeypatch.setattr(workers, "cpu_count", lambda: cores)
    monkeypatch.setattr(workers, "rank_count", lambda: ranks)
    assert workers._worker_count(pieces) == expected


SCRIPT = """
import os, time
import psutil
from bmvtrack.data import workers

def work(number):
    time.sleep(number)
    return os.getpid()

workers._FEWEST, workers._worker_count = 2, lambda pieces: 2
waiting = [0.0, *[1000.0] * 40]
results = workers.mapped(work, waiting, lambda: waiting, 1)
first = next(results)
results.close()  # as Ctrl-C does
print(psutil.pid_exists(first))
with workers.worker_pool(2) as pool:
    print(*set(pool.map(work, [0.2] * 4)), flush=True)
    list(pool.map(work, [1000, 1000]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process as POSIX does")
def test_a_script_needs_no_guard_and_leaves_no_workers(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(SCRIPT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(script)], **pipes, text=True) as run:
        assert run.stdout is not None
        interrupted = run.stdout.readline()
        started = [psutil.Process(int(number)) for number in run.stdout.readline().split()]
        run.kill()
        assert run.stderr is not None
        assert "Traceback" not in run.stderr.read()  # not by a thread either
    assert interrupted == "False\n"
    assert started
    assert not psutil.wait_procs(started, timeout=30)[1]
