"""Draw priors and posteriors over the five motion parameters as a corner plot.

It shows named priors, priors fitted to data with either labelling, and the posteriors that encoders predict
for a frame seen through the true box of the previous one. Ellipses hold 95 % of a Gaussian.

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
from bmvtrack.figures import check_picture
from bmvtrack.motion import Coordinates
from bmvtrack.perception import Perception
from bmvtrack.prior import Labels, MotionPrior


@dataclass
class Options:
    """Draw priors and posteriors over the five motion parameters as a corner plot."""

    out: Path = Path("corner.png")
    """PNG file to write"""
    priors: tuple[str, ...] = ("davis16",)
    """names or .json files of motion priors; give --priors without a value for none"""
    coordinates: Coordinates = "object"
    """coordinates of the motion: about the object, or about the frame's corner (the paper's G_t). A prior in
    `object` coordinates becomes a different one in `frame` coordinates for every box, so `frame` needs
    exactly one frame in --frames to convert it"""
    data: str = "synthetic"
    """data for --labels and --frames: synthetic, davis16:FOLDER[:SPLIT], otb:FOLDER or vot:FOLDER"""
    labels: tuple[Labels, ...] = ()
    """fit a prior to the data with each of these labels: opencv, continuous"""
    frames_apart: int = 1
    """frames between the two boxes of a pair, for --labels; YouTube-VOS is annotated every 5 frames"""
    points: bool = False
    """also draw the motions that the priors of --labels are fitted to"""
    weights: tuple[str, ...] = (DEFAULT_WEIGHTS,)
    """encoders for --frames: names of bundled weights, or folders"""
    sequence: str | None = None
    """name of the sequence for --frames; default: the first one"""
    frames: tuple[int, ...] = ()
    """draw the posteriors of these frames, each seen through the true box of the previous frame"""

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: if there is nothing to draw or an option is invalid; it names the option.
        """
        check_picture(self.out)
        if not (self.priors or self.labels or (self.frames and self.weights)):
            raise UserError("nothing to draw: give --priors, --labels or --frames")
        if self.points and not self.labels:
            raise UserError("--points draws the motions of fitted priors: give --labels")
        if self.sequence is not None and not self.frames:
            raise UserError("--sequence chooses where --frames are drawn from: give --frames")
        if self.coordinates == "frame" and len(self.frames) > 1:
            raise UserError(
                "every frame has its own prior in frame coordinates: give one of --frames, "
                "or --coordinates object"
            )


@dataclass(frozen=True)
class View:
    """A frame and the true box of the previous frame."""

    sequence: VideoSequence
    frame: int

    @property
    def box(self) -> FloatArray:
        """The true box ``(5,)`` of the previous frame."""
        return np.asarray(self.sequence.boxes[self.frame - 1])

    def look(self, perception: Perception) -> MotionPrior:
        """The encoder's posterior of the motion to this frame, in ``object`` coordinates.

        The template is that of a tracker started from the first frame with an object.
        """
        first = int(np.flatnonzero(self.sequence.present)[0])
        template = perception.remember(self.sequence.frame(first), self.sequence.boxes[first])
        percept = perception.look(self.sequence.frame(self.frame), self.box, template)
        return MotionPrior(percept.mean[0].cpu().numpy(), percept.covariance[0].cpu().numpy())


def main() -> None:
    """Collect the Gaussians and draw them."""
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
            raise UserError(f"--frames of {name} must lie in 1 to {len(sequence) - 1}, not {t}")
        if not sequence.present[t - 1]:
            raise UserError(f"--frames {t}: {name} has no object in frame {t - 1} to look through")
    return [View(sequence, t) for t in options.frames]


def in_coordinates(
    gaussian: MotionPrior, name: str, options: Options, views: list[View]
) -> MotionPrior:
    """A Gaussian in the requested coordinates, converted at the view's box if necessary.

    Raises:
        UserError: if it cannot be converted.
    """
    if gaussian.coordinates == options.coordinates:
        return gaussian
    if gaussian.coordinates == "frame":
        raise UserError(f"{name} is in frame coordinates: give --coordinates frame")
    if not views:
        raise UserError(
            f"{name} is in object coordinates and differs from box to box in frame coordinates: give "
            "one of --frames, or --coordinates object"
        )
    return gaussian.at_box(views[0].box, *views[0].sequence.size)


def fit_priors(
    options: Options, sequences: list[VideoSequence]
) -> tuple[dict[str, MotionPrior], dict[str, FloatArray]]:
    """Priors fitted with each of --labels and, with --points, the motions that they are fitted to."""
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
