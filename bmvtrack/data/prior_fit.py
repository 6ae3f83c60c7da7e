"""Fit the motion prior N(μ, Σ) of a DAVIS16 folder: from options to a table and a JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bmvtrack import prior
from bmvtrack.arrays import FloatArray
from bmvtrack.console import check_output_folder, output_console
from bmvtrack.data.davis import DavisSplit, load_davis16
from bmvtrack.errors import UserError
from bmvtrack.motion import PARAMETERS, Coordinates
from bmvtrack.prior import Labels, MotionPrior

Boxes = list[tuple[FloatArray, int, int]]  # of a sequence, with the frame's width and height
Setting = tuple[int, Labels, Coordinates]  # frames apart, labels, coordinates

TABLE: tuple[Setting, ...] = (
    (5, "opencv", "frame"),
    (1, "opencv", "frame"),
    (1, "continuous", "frame"),
    (1, "continuous", "object"),
)
SPLITS: dict[DavisSplit | None, str] = {
    None: "all sequences",
    "train": "training split",
    "val": "validation split",
    "trainval": "training and validation splits",
}


@dataclass(frozen=True)
class FitOptions:
    """Fit the motion prior to the boxes of a DAVIS16 folder."""

    root: Path
    """DAVIS16 folder that contains JPEGImages and Annotations."""
    split: DavisSplit | None = None
    """Split listed in ImageSets; all sequences of the folder if not given."""
    frames_apart: int = 1
    """Frames between the two boxes of a pair; 5 corresponds to the annotation of YouTube-VOS."""
    labels: Labels = "continuous"
    """Which of its four labels a rectangle gets: OpenCV's, or the one that turns least."""
    coordinates: Coordinates = "object"
    """Coordinates of the motion: about the frame's corner (the paper's G_t) or about the object."""
    out: Path | None = None
    """JSON file to write the prior to."""
    table: bool = False
    """Print the prior five and one frames apart, with both labels, in both coordinates, instead of the
    requested one."""

    def check(self) -> None:
        """Reject invalid options.

        Raises:
            UserError: naming the option.
        """
        asked = (self.frames_apart, self.labels, self.coordinates)
        default = (FitOptions.frames_apart, FitOptions.labels, FitOptions.coordinates)
        if self.table and self.out is None and asked != default:
            raise UserError(
                "--table always prints the same settings; leave out --frames-apart, --labels and "
                "--coordinates, or add --out to write the prior that they specify"
            )
        if self.out is not None:
            if self.out.is_dir():
                raise UserError(f"--out {self.out} is a folder; give a JSON file")
            check_output_folder(self.out.parent)


def fit_prior(options: FitOptions) -> None:
    """Read the boxes, fit, print, and write the prior if requested.

    Boxes are the smallest rotated rectangles around the masks. The fit is the plain mean and
    covariance: a pair whose mask breaks up or is occluded has the same weight as any other.

    Raises:
        UserError: if the folder is invalid, or there are too few pairs.
    """
    options.check()
    sequences = load_davis16(options.root, options.split)
    progress = track(sequences, "reading masks", console=Console(stderr=True), transient=True)
    boxes = [(sequence.opencv_boxes, *sequence.size) for sequence in progress]
    asked: Setting = (options.frames_apart, options.labels, options.coordinates)
    if options.out is not None:
        plural = "" if options.frames_apart == 1 else "s"
        source = (
            f"DAVIS16 {SPLITS[options.split]}, {len(boxes)} sequences, "
            f"{options.frames_apart} frame{plural} apart; scripts/fit_prior.py"
        )
        _fit(boxes, asked, source)[0].save(options.out)
    settings = TABLE if options.table else (asked,)
    _show([(setting, *_fit(boxes, setting)) for setting in settings])
    if options.out is not None:
        print(f"written to {options.out}")


def _fit(boxes: Boxes, setting: Setting, source: str = "") -> tuple[MotionPrior, int]:
    frames_apart, labels, coordinates = setting
    return prior.fit(
        boxes, frames_apart=frames_apart, labels=labels, coordinates=coordinates, source=source
    )


def _show(rows: list[tuple[Setting, MotionPrior, int]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, caption=f"v = ({', '.join(PARAMETERS)})")
    for heading in ("frames apart", "labels", "coordinates", "μ", "standard deviations", "pairs"):
        table.add_column(heading)
    for (frames_apart, labels, coordinates), fitted, pairs in rows:
        numbers = (fitted.mean, fitted.standard_deviations)
        columns = (" ".join(f"{number:.3f}" for number in vector) for vector in numbers)
        table.add_row(str(frames_apart), labels, coordinates, *columns, str(pairs))
    output_console().print(table)
