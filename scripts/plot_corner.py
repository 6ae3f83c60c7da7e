"""Draw priors and posteriors over the five motion parameters as a corner plot.

Named priors, priors fitted to data under either labeling, and what encoders say of a frame, seen
through the true box of the frame before. Ellipses hold 95 % of a Gaussian.

    python scripts/plot_corner.py --weights davis16-duts --frames 5 15
    python scripts/plot_corner.py --priors paper --coordinates frame --out prior.png \\
        --data davis16:DAVIS:val --labels opencv continuous --frames-apart 5 --points
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from bmvtrack import prior
from bmvtrack.arrays import FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import parse_options
from bmvtrack.corner import plot_corner
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.sources import load_sequences
from bmvtrack.errors import UserError, run_script
from bmvtrack.motion import Coordinates
from bmvtrack.perception import Perception
from bmvtrack.prior import Labels, MotionPrior


@dataclass
class Options:
    """Draw priors and posteriors over the five motion parameters as a corner plot."""

    out: Path = Path("corner.png")
    """picture to write, .png"""
    priors: tuple[str, ...] = ("davis16",)
    """names or .json files of motion priors; `--priors` alone: none"""
    coordinates: Coordinates = "object"
    """of the motion: about the object, or about the frame's corner (the paper's G_t). A prior in
    `object` coordinates is another one in `frame` coordinates for every box: that needs one frame"""
    data: str = "synthetic"
    """for --labels and --frames: synthetic, davis16:FOLDER[:SPLIT], otb:FOLDER or vot:FOLDER"""
    labels: tuple[Labels, ...] = ()
    """fit a prior to the data with each of these labels: opencv, continuous"""
    frames_apart: int = 1
    """between the two boxes of a pair, for --labels; 5 is as YouTube-VOS is annotated"""
    points: bool = False
    """draw the motions that --labels are fitted to"""
    weights: tuple[str, ...] = (DEFAULT_WEIGHTS,)
    """encoders, for --frames: names of bundled weights, or folders"""
    sequence: str | None = None
    """name of the sequence, for --frames; the first one if not given"""
    frames: tuple[int, ...] = ()
    """draw the posterior of these frames, each seen through the true box of the one before"""

    def check(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UserError: naming the option.
        """
        if self.out.suffix != ".png":
            raise UserError(f"--out {self.out}: give a name that ends in .png")
        if not (self.priors or self.labels or (self.frames and self.weights)):
            raise UserError("nothing to draw: give --priors, --labels or --frames")
        if self.points and not self.labels:
            raise UserError("--points are of what is fitted: give --labels")
        if self.coordinates == "frame" and len(self.frames) > 1:
            raise UserError(
                "every frame has its own prior in frame coordinates: give one of --frames, "
                "or --coordinates object"
            )


@dataclass(frozen=True)
class View:
    """A frame, and the true box of the frame before it."""

    sequence: VideoSequence
    frame: int

    @property
    def box(self) -> FloatArray:
        """``(5,)``."""
        return np.asarray(self.sequence.boxes[self.frame - 1])

    def look(self, perception: Perception) -> MotionPrior:
        """What the encoder says of the motion to this frame, in ``object`` coordinates.

        As a tracker hears it that started from the first frame with an object.
        """
        first = int(np.flatnonzero(self.sequence.present)[0])
        template = perception.remember(self.sequence.frame(first), self.sequence.boxes[first])
        percept = perception.look(self.sequence.frame(self.frame), self.box, template)
        return MotionPrior(percept.mean[0].cpu().numpy(), percept.covariance[0].cpu().numpy())


def main() -> None:
    """Gather the Gaussians, and draw them."""
    options = parse_options(Options, __doc__)
    options.check()
    named = {f"prior {name}": prior.load(name) for name in options.priors}
    read = options.labels or options.frames
    sequences = load_sequences(options.data) if read else []
    views = find_views(options, sequences)
    gaussians = {name: in_coordinates(g, name, options, views) for name, g in named.items()}
    fitted, samples = fit_priors(options, sequences)
    gaussians |= fitted
    for weights in options.weights if views else ():
        perception = Perception.load(weights)
        for view in views:
            name = f"{weights}, {view.sequence.name} {view.frame}"
            gaussians[name] = in_coordinates(view.look(perception), name, options, views)
    plot_corner(gaussians, options.out, samples)
    print(options.out)


def find_views(options: Options, sequences: list[VideoSequence]) -> list[View]:
    """The views of --frames.

    Raises:
        UserError: if there is no such sequence or frame, or no object in the frame before.
    """
    if not options.frames:
        return []
    by_name = {sequence.name: sequence for sequence in sequences}
    name = options.sequence or sequences[0].name
    if name not in by_name:
        raise UserError(f"no sequence {name} in {options.data}; there are {', '.join(by_name)}")
    sequence = by_name[name]
    for t in options.frames:
        if not 1 <= t < len(sequence):
            raise UserError(f"--frames of {name} are from 1 to {len(sequence) - 1}, not {t}")
        if not sequence.present[t - 1]:
            raise UserError(f"--frames {t}: {name} has no object in frame {t - 1} to look through")
    return [View(sequence, t) for t in options.frames]


def in_coordinates(
    gaussian: MotionPrior, name: str, options: Options, views: list[View]
) -> MotionPrior:
    """A Gaussian in the coordinates that were asked for, at the box of the view if need be.

    Raises:
        UserError: if it cannot be brought into them.
    """
    if gaussian.coordinates == options.coordinates:
        return gaussian
    if gaussian.coordinates == "frame":
        raise UserError(f"{name} is in frame coordinates: give --coordinates frame")
    if not views:
        raise UserError(
            f"{name} is in object coordinates, and in frame coordinates another one for every "
            "box: give one of --frames, or --coordinates object"
        )
    return gaussian.at_box(views[0].box, *views[0].sequence.size)


def fit_priors(
    options: Options, sequences: list[VideoSequence]
) -> tuple[dict[str, MotionPrior], dict[str, FloatArray]]:
    """Priors fitted with each of --labels and, with --points, the motions behind them."""
    if not options.labels:
        return {}, {}
    progress = track(sequences, "reading boxes", console=Console(stderr=True), transient=True)
    boxes = [(sequence.opencv_boxes, *sequence.size) for sequence in progress]
    apart, coordinates = options.frames_apart, options.coordinates
    fitted, samples = {}, {}
    for labels in options.labels:
        gaussian, pairs = prior.fit(
            boxes, frames_apart=apart, labels=labels, coordinates=coordinates
        )
        name = f"{labels} labels, {apart} apart, {pairs} pairs"
        fitted[name] = gaussian
        if options.points:
            motions = [prior.sequence_motion(*b, apart, labels, coordinates) for b in boxes]
            samples[name] = np.concatenate(motions)
    return fitted, samples


if __name__ == "__main__":
    run_script(main)
