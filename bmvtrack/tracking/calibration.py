"""Calibration of the covariance that trackers report: tracking, then one number saved with the weights.

A network is trained on boxes that are nearly right, one frame at a time, and knows much of its training data.
A tracker sees new frames through boxes that have drifted, and there the true motion is further from the
posterior's mean than its covariance says. Multiplied by

    scale = mean over frames of d² / 5,   d² = (v − mean)ᵀ covariance⁻¹ (v − mean),

the covariances have the highest likelihood of all multiples (σ scaling: Laves et al., "Well-Calibrated
Regression Uncertainty in Medical Imaging with Deep Learning", MIDL 2020; here in five dimensions).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from bmvtrack.arrays import FloatArray
from bmvtrack.bundled import weights_folder
from bmvtrack.console import check_at_least, output_console, progress_bar
from bmvtrack.data import sources
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.models import save_covariance_scale, saved_arguments
from bmvtrack.motion import PARAMETERS
from bmvtrack.tracker import Tracker
from bmvtrack.tracking.evaluation import evaluate
from bmvtrack.tracking.learned import PerceptionTracker
from bmvtrack.tracking.protocols import check_sequence
from bmvtrack.tracking.report import coverage_table, distances_on_track, shares_of
from bmvtrack.tracking.trackers import BoxTracker, always

_FEWEST = 100  # frames: if they were independent, the scale would have a standard error of 6 %


class TooFewFrames(UserError):
    """The tracker is on track in too few frames to find a scale."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Scale the covariance that trackers report to the errors they make."""

    weights: str
    """folder of weights, or the name of bundled ones, with or without an agent; config.json is rewritten"""
    data: tuple[str, ...] = ("synthetic",)
    """videos to track, one or more of: synthetic, cutouts:FOLDER, davis16:FOLDER[:SPLIT], otb:FOLDER,
    vot:FOLDER"""
    upside_down: bool = False
    """flip them upside down: on its own training sequences, flipped, a network errs as it does on new ones"""
    segments: int = 2
    """number of starts along each sequence"""
    synthetic_count: int = 32
    """number of sequences of `synthetic` and `cutouts` data"""
    seed: int = 700
    """random seed of these sequences"""
    device: str = "cpu"
    """device of the encoder: cpu or cuda"""

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: if an option is invalid; it names the option.
        """
        if not self.data:
            raise UserError("--data needs at least one name, like synthetic or davis16:FOLDER")
        for source in self.data:
            sources.refuse_stills("data", source)
        check_at_least(1, self, "segments", "synthetic_count")
        check_at_least(0, self, "seed")


def calibrate(options: CalibrationOptions, console: Console | None = None) -> float:
    """Track, find the scale, print the coverage without and with it, and save it in ``config.json``.

    The tracker is that of :meth:`Tracker.load`: moved by the agent if there is one, else halfway between
    posterior mean and mask.

    Returns:
        The scale, relative to the network's own covariance.

    Raises:
        UserError: if options, weights or data are invalid.
        TooFewFrames: if the object is lost nearly everywhere; nothing is written then.
    """
    options.check()
    folder = weights_folder(options.weights)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--weights {folder} is not writable; copy the folder and give the copy")
    tracker = PerceptionTracker(Tracker.load(folder, options.device))
    before = float(saved_arguments(folder).get("covariance_scale", 1.0))
    reported = _distances(tracker, _sequences(options), options.segments)
    if len(reported) < _FEWEST:
        raise TooFewFrames(
            f"the tracker overlaps the object by more than half in {len(reported)} frames, and {_FEWEST} are "
            "needed to find the scale; give more --data, or train the weights further"
        )
    distances = before * reported  # from the network's own covariance
    scale = float(distances.mean()) / len(PARAMETERS)
    shares = {
        "1, the network's own": shares_of(distances),
        f"{scale:.3g}, the likeliest": shares_of(distances / scale),
    }
    (console or output_console()).print(coverage_table(shares, "scale of the covariance"))
    save_covariance_scale(folder, scale)
    return scale


def _sequences(options: CalibrationOptions) -> list[VideoSequence]:
    sequences = [
        sequence
        for source in options.data
        for sequence in sources.load_sequences(
            source, synthetic_count=options.synthetic_count, seed=options.seed
        )
    ]
    return [upside_down(sequence) for sequence in sequences] if options.upside_down else sequences


def _distances(
    tracker: BoxTracker, sequences: Sequence[VideoSequence], segments: int
) -> FloatArray:
    """Squared Mahalanobis distances of the true motion, where a tracker is on track."""
    with progress_bar() as progress:
        for sequence in progress.track(sequences, description="checking the data"):
            check_sequence(sequence)
        task = progress.add_task("tracking", total=len(sequences))
        factories = {"tracker": always(tracker)}
        results = evaluate(
            factories, sequences, "tre", segments, advance=lambda: progress.advance(task)
        )
    return distances_on_track(results["tracker"])
