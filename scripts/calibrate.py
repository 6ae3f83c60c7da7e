"""Scale the covariance that trackers report to the errors they make.

Tracks the data, finds the scale of the covariance that makes the true motion likeliest where the tracker is
on track, prints the coverage without and with it, and saves it in the weights' config.json. Boxes and masks
do not change.

    python scripts/calibrate.py --weights runs/sac/best
    python scripts/calibrate.py --weights runs/sac/best --data davis16:DAVIS:train synthetic --upside-down
"""

from bmvtrack.console import parse_options
from bmvtrack.errors import run_script
from bmvtrack.tracking.calibration import CalibrationOptions, calibrate


def main() -> None:
    """Parse the options and calibrate."""
    calibrate(parse_options(CalibrationOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
