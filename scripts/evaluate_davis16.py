"""Evaluate trackers by IoU on DAVIS16, OTB, VOT or synthetic sequences (one-pass, TRE or SRE).

Prints tables and writes to --out: summary.json, results/TRACKER/SEQUENCE.csv, success.png,
precision.png; with --video also videos/TRACKER/SEQUENCE.mp4, with --failures a page of the tracks
that were lost and where, failures/failures.md. All trackers run on one CPU thread.

    python scripts/evaluate_davis16.py
    python scripts/evaluate_davis16.py --root DAVIS --split val --weights runs/sac/best --video
    python scripts/evaluate_davis16.py --root DAVIS --split val --protocol tre
    python scripts/evaluate_davis16.py --data otb:OTB100 --weights davis16-duts --trackers prior
"""

import tyro

from agents.evaluation import EvaluationOptions, run_evaluation
from bmvtrack.errors import run_script


def main() -> None:
    """Parse the options and evaluate."""
    run_evaluation(tyro.cli(EvaluationOptions, description=__doc__))


if __name__ == "__main__":
    run_script(main)
