"""Measure the speed of training, environment, agent and tracking on this machine.

Complete steps are measured, including data loading, each against its alternative. Machines differ and
timings are noisy, so compare only numbers of the same run, as ratios.

    python scripts/benchmark.py
    python scripts/benchmark.py --parts environment --environments 1 16 64 256 --device cuda
    python scripts/benchmark.py --parts training --mode paper --architecture beta-mvunet --profile
"""

from agents.benchmark import BenchmarkOptions, run_benchmark
from bmvtrack.console import parse_options
from bmvtrack.errors import run_script


def main() -> None:
    """Parse the options and measure."""
    run_benchmark(parse_options(BenchmarkOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
