"""Evaluate trackers by IoU on DAVIS16, OTB, VOT or synthetic sequences (one-pass, TRE or SRE).

Prints tables and writes to --out: summary.json, results/TRACKER/SEQUENCE.csv, success.png and
precision.png; with --video also videos/TRACKER/SEQUENCE.mp4, with --failures also failures/failures.md,
which shows which tracks were lost and where. All trackers run on one CPU thread.

    python scripts/evaluate_davis16.py
    python scripts/evaluate_davis16.py --root DAVIS --split val --weights runs/sac/best --video
    python scripts/evaluate_davis16.py --root DAVIS --split val --protocol tre
    python scripts/evaluate_davis16.py --data otb:OTB100 --weights davis16-duts --trackers prior
"""

from agents.evaluation import EvaluationOptions, run_evaluation
from bmvtrack.console import parse_options
from bmvtrack.errors import run_script


def main() -> None:
    """Parse the options and evaluate."""
    run_evaluation(parse_options(EvaluationOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
