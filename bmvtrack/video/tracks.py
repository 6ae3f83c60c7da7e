"""The results of a tracked video, one line per frame and object, as CSV and as JSON.

All coordinates are in pixels of the frame. Boxes are ``x, y, w, h`` with the upper left corner,
axis-aligned; rotated boxes are centre, size and angle in radians. The motion's mean and covariance are those
of :class:`bmvtrack.tracker.Result`. In an object's first frame there is only the given box. Seconds are the
frame number divided by the video's frame rate; where that varies (phones), they are right only on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import FloatArray
from bmvtrack.files import csv_text
from bmvtrack.inputs import corner_and_size
from bmvtrack.tracker import Result
from bmvtrack.video.truth import FrameIoU, TrueBox

_COLUMNS = (
    *("frame", "seconds", "object", "x", "y", "w", "h"),
    *("centre_x", "centre_y", "width", "height", "angle"),
    *("score", "iou_rotated", "iou_axis_aligned", "mahalanobis"),
)


@dataclass(frozen=True)
class Position:
    """The position of one object in one frame.

    Attributes:
        frame: number of the frame.
        box: x, y, w, h.
        rbbox: rotated box.
        score: see :func:`bmvtrack.tracker.confidence`; None in the first frame.
        mean: five numbers; None in the first frame.
        covariance: five rows of five numbers; None in the first frame.
        iou: IoU with the truth; None in the first frame, without truth, and where there is no object.
        mahalanobis: squared distance of the true motion from the posterior, see
            :meth:`bmvtrack.tracker.Result.mahalanobis`; None where ``iou`` is.
    """

    frame: int
    box: list[float]
    rbbox: list[float]
    score: float | None = None
    mean: list[float] | None = None
    covariance: list[list[float]] | None = None
    iou: FrameIoU | None = None
    mahalanobis: float | None = None

    @classmethod
    def given(cls, frame: int, rbbox: FloatArray) -> Position:
        """The position in the frame that tracking starts from."""
        return cls(frame, corner_and_size(geometry.bounds(rbbox)).tolist(), rbbox.tolist())

    @classmethod
    def found(cls, frame: int, result: Result, true: TrueBox | None) -> Position:
        """The position in a later frame, compared with the true one if that is known."""
        return cls(
            frame,
            result.box.tolist(),
            result.rbbox.tolist(),
            result.score,
            result.mean.tolist(),
            result.covariance.tolist(),
            None if true is None else true.overlap(result),
            None if true is None else result.mahalanobis(true.rbbox),
        )


@dataclass
class TrackedVideo:
    """A video and the positions of its objects.

    Attributes:
        name: name of the video.
        size: width and height in pixels.
        fps: frames per second of the video.
        weights: weights that the tracker was loaded from.
        objects: positions by object id, one per tracked frame, in the same frames for all objects.
        skipped: numbers of the skipped frames: undecodable, or of another size than the first.
        speed: frames tracked per second, without reading and drawing; 0 before the first.
        unscored: number of tracked frames beyond the end of the truth.
    """

    name: str
    size: tuple[int, int]
    fps: float
    weights: str
    objects: dict[int, list[Position]]
    skipped: list[int] = field(default_factory=list)
    speed: float = 0.0
    unscored: int = 0

    @property
    def frames(self) -> list[int]:
        """Numbers of the tracked frames, including the first one with the given boxes."""
        positions = next(iter(self.objects.values()))
        return [position.frame for position in positions]

    def to_csv(self) -> str:
        """One line per frame and object; values that do not apply are empty."""
        return csv_text([_COLUMNS, *self._rows()])

    def to_dict(self) -> dict[str, Any]:
        """All results as JSON-serialisable values; the positions are the fields of :class:`Position`."""
        objects = [
            {"id": object_id, "positions": [asdict(position) for position in positions]}
            for object_id, positions in self.objects.items()
        ]
        return {
            "video": self.name,
            "width": self.size[0],
            "height": self.size[1],
            "fps": self.fps,
            "weights": self.weights,
            "frames_tracked_per_second": self.speed,
            "skipped": self.skipped,
            "objects": objects,
        }

    def mean_iou(self) -> FrameIoU | None:
        """Mean IoU over all frames with an object except the first; None without truth."""
        overlaps = [p.iou for positions in self.objects.values() for p in positions if p.iou]
        if not overlaps:
            return None
        rotated, axis_aligned = np.mean([(o.rotated, o.axis_aligned) for o in overlaps], axis=0)
        return FrameIoU(float(rotated), float(axis_aligned))

    def _rows(self) -> Iterator[list[str | int]]:
        for positions in zip(*self.objects.values(), strict=True):
            for object_id, position in zip(self.objects, positions, strict=True):
                iou = position.iou
                yield [
                    position.frame,
                    f"{position.frame / self.fps:.3f}",
                    object_id,
                    *(f"{value:.2f}" for value in position.box),
                    *(f"{value:.4f}" for value in position.rbbox),
                    "" if position.score is None else f"{position.score:.4f}",
                    *(["", ""] if iou is None else [f"{v:.4f}" for v in asdict(iou).values()]),
                    "" if position.mahalanobis is None else f"{position.mahalanobis:.4f}",
                ]
