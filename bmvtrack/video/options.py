"""Options for tracking a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_at_least, check_output_folder
from bmvtrack.errors import UserError


@dataclass(frozen=True)
class TrackOptions:
    """Follow objects in a video from their boxes in its first frame."""

    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")]
    """a video file, a folder of images, or the index of a camera (0 is the first)"""
    box: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="X,Y,W,H")
    ] = ()
    """upper left corner and size of an object's box in the first frame, in pixels; repeat for each object"""
    select: bool = False
    """draw the object's box with the mouse"""
    truth: Path | None = None
    """folder with a .png mask per frame, as in DAVIS; tracking starts from the box of its first mask unless
    --box or --select is given, and the track is scored by IoU"""
    weights: str = DEFAULT_WEIGHTS
    """name of bundled weights, or a folder; if it holds an agent, the agent moves the box"""
    device: str = "cpu"
    """device of the encoder: cpu or cuda"""
    fps: float | None = None
    """frames per second; default: as the video says, or 25"""
    max_frames: int | None = None
    """stop after this many frames"""
    report: bool = False
    """also write a self-contained HTML report, which works offline"""
    out: Path = Path("runs/video")
    """folder to write to: NAME-tracked.mp4, .csv, .json and, with --report, .html"""

    def check(self) -> None:
        """Check the options before anything is run.

        Raises:
            UserError: if an option is invalid; it names the option.
        """
        if self.select and self.box:
            raise UserError("--box and --select both say where the object is; give one of them")
        if not (self.select or self.box or self.truth is not None):
            raise UserError("no object: give its --box x,y,w,h, or --select it with the mouse")
        if self.truth is not None and len(self.box) > 1:
            raise UserError("--truth scores a single object; give at most one --box")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"--fps must be above 0 and at most 1000, not {self.fps}")
        check_at_least(2, self, "max_frames")
        self.boxes()
        check_output_folder(self.out)

    def boxes(self) -> list[list[float]]:
        """The boxes given by --box.

        Raises:
            UserError: if one is not four numbers.
        """
        return [_four_numbers(text) for text in self.box]


def _four_numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"--box {text}: give four numbers separated by commas, x,y,w,h")
    return numbers
