"""Ground-truth masks of the object in a video, for scoring its track."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.data.davis import read_mask
from bmvtrack.errors import UserError
from bmvtrack.files import numbered_files
from bmvtrack.iou import bounds_iou, rotated_iou
from bmvtrack.tracker import Result
from bmvtrack.video.sources import FrameFolder, VideoSource


@dataclass(frozen=True)
class FrameIoU:
    """IoU of an object's track with the truth in one frame, in [0, 1].

    Attributes:
        rotated: IoU of the rotated boxes.
        axis_aligned: IoU of the axis-aligned bounds of the true mask and the track.
    """

    rotated: float
    axis_aligned: float


@dataclass(frozen=True, eq=False)
class TrueBox:
    """The true position of the object.

    Attributes:
        rbbox: ``(5,)`` rotated box of the true mask.
        limits: ``(4,)`` bounds of the true mask.
    """

    rbbox: FloatArray
    limits: FloatArray

    def overlap(self, result: Result) -> FrameIoU:
        """IoU of a result with the true position."""
        return FrameIoU(
            float(rotated_iou(result.rbbox, self.rbbox)),
            float(bounds_iou(result.limits, self.limits)),
        )


class Truth:
    """A folder with one mask image per frame of a video, in the order of their numbers.

    Args:
        folder: folder of .png files, as in DAVIS.
        source: video that they belong to; the k-th mask belongs to frame k.

    Raises:
        UserError: if there is no such folder, or no mask in it; if the masks' numbers are not those of a
            folder of frames, or have a gap.
    """

    def __init__(self, folder: Path, source: VideoSource) -> None:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; --truth takes a folder of mask images")
        self._paths = numbered_files(folder, (".png",))
        if not self._paths:
            raise UserError(f"{folder} holds no .png masks")
        if isinstance(source, FrameFolder):
            self._check_numbers(folder, source)
        else:  # a video file only estimates its length
            self._check_gaps()

    def _check_numbers(self, folder: Path, source: FrameFolder) -> None:
        if len(source.paths) != len(self._paths):
            raise UserError(
                f"{folder} holds {len(self._paths)} .png masks, but {source.name} has "
                f"{len(source.paths)} frames; there must be one mask for each frame"
            )
        frames, masks = _numbers(source.paths), _numbers(self._paths)
        if frames is None or masks is None:
            return
        for i, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            if frame != mask:
                raise UserError(
                    f"{self._paths[i]} would be the mask of {source.paths[i].name}, which has another "
                    "number; there must be one mask for each frame"
                )

    def _check_gaps(self) -> None:
        numbers = _numbers(self._paths) or []
        for i, (number, next_) in enumerate(pairwise(numbers)):
            if next_ != number + 1:
                raise UserError(
                    f"after {self._paths[i]} comes {self._paths[i + 1].name}; of a video file, there must be "
                    "one mask for each frame, without gaps"
                )

    def mask(self, number: int) -> BoolArray:
        """The mask ``(H, W)`` of a frame.

        Raises:
            UserError: if there is none, or it cannot be read.
        """
        if number >= len(self):
            raise UserError(f"there are {len(self)} true masks, but none for frame {number}")
        return read_mask(self._paths[number])

    def __len__(self) -> int:
        """Number of masks."""
        return len(self._paths)

    def box(self, number: int, size: tuple[int, int]) -> TrueBox | None:
        """The true box of a frame; None where there is no object or no mask.

        Args:
            number: number of the frame.
            size: width and height of the frame.

        Raises:
            UserError: if the mask cannot be read, or differs in size from the frame.
        """
        if number >= len(self):
            return None
        mask = self.mask(number)
        if mask.shape[::-1] != size:
            raise UserError(
                f"{self._paths[number]} is {mask.shape[1]}×{mask.shape[0]} but the frame is "
                f"{size[0]}×{size[1]}; both must have the same size"
            )
        rbbox = geometry.from_mask(mask)
        return None if rbbox is None else TrueBox(rbbox, geometry.mask_bounds(mask))


def _numbers(paths: Sequence[Path]) -> list[int] | None:
    """The numbers in which the file names differ; None if it is unclear which numbers these are."""
    digits = [[int(run) for run in re.findall(r"\d+", path.stem)] for path in paths]
    if len({len(runs) for runs in digits}) > 1:
        return None
    varying = [list(column) for column in zip(*digits, strict=True) if len(set(column)) > 1]
    return varying[0] if len(varying) == 1 else None
