"""Options of tracking a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_output_folder
from bmvtrack.errors import UserError


@dataclass(frozen=True)
class TrackOptions:
    """Follow objects in a video from their boxes in its first frame."""

    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")]
    """a video file, a folder of images, or the index of a camera (0 is the first)"""
    box: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="X,Y,W,H")
    ] = ()
    """upper left corner and size, in pixels, of an object in the first frame; once for each object"""
    select: bool = False
    """draw the box with the mouse"""
    truth: Path | None = None
    """folder with a .png mask for each frame, as in DAVIS: its first box is the default, and the
    track is scored by IoU"""
    weights: str = DEFAULT_WEIGHTS
    """bundled weights by name, or a folder; where it holds an agent, the agent moves the box"""
    device: str = "cpu"
    """cpu or cuda: for the encoder"""
    fps: float | None = None
    """frames per second; as the video says, or 25, if not given"""
    max_frames: int | None = None
    """stop after so many frames"""
    report: bool = False
    """write a page to look at, in one HTML file that needs no network"""
    out: Path = Path("runs/video")
    """folder to write to: NAME-tracked.mp4, .csv, .json and, with --report, .html"""

    def check(self) -> None:
        """Refuse what cannot be run before anything is.

        Raises:
            UserError: naming the option.
        """
        if self.select and self.box:
            raise UserError("--box and --select both say where the object is; give one of them")
        if not (self.select or self.box or self.truth is not None):
            raise UserError("no object: give its --box x,y,w,h, or --select it with the mouse")
        if self.truth is not None and len(self.box) > 1:
            raise UserError("--truth is of one object; give one --box, or none")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"--fps must be above 0 and at most 1000, not {self.fps}")
        if self.max_frames is not None and self.max_frames < 2:
            raise UserError(f"--max-frames must be at least 2, not {self.max_frames}")
        self.boxes()
        check_output_folder(self.out)

    def boxes(self) -> list[list[float]]:
        """The boxes of --box.

        Raises:
            UserError: if one isn't four numbers.
        """
        return [_four_numbers(text) for text in self.box]


def _four_numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"--box {text}: four numbers with commas between them, x,y,w,h")
    return numbers
