"""A tracked video as one HTML file: the video, its numbers over time, and the patches."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bmvtrack.motion import PARAMETERS
from bmvtrack.video.overlay import colour_of
from bmvtrack.video.tracks import Position, TrackedVideo

_DIGITS = 5  # significant, of what is plotted


def report_page(video: TrackedVideo, clip: Path, patch_clips: Sequence[Path]) -> str:
    """The page as text; it loads nothing from anywhere.

    Args:
        video: what is plotted.
        clip: MP4 with one frame for each tracked frame.
        patch_clips: one such MP4 for each object.

    Returns:
        HTML with all data as JSON in the element ``data``, MP4s in it as base64.
    """
    data = page_data(video)
    data["clip"] = _base64(clip)
    for entry, path in zip(data["objects"], patch_clips, strict=True):
        entry["patches"] = _base64(path)
    # A script element ends at "</", wherever it stands.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("bmvtrack.video").joinpath("report.html").read_text("utf-8")
    parts = {"@TITLE@": html.escape(video.name), "@DATA@": text}
    return re.sub("@TITLE@|@DATA@", lambda mark: parts[mark[0]], template)


def page_data(video: TrackedVideo) -> dict[str, Any]:
    """What the page shows, but for the videos: numbers by frame, null where there are none."""
    return {
        "name": video.name,
        "fps": video.fps,
        "width": video.size[0],
        "height": video.size[1],
        "weights": video.weights,
        "speed": _rounded(video.speed),
        "skipped": len(video.skipped),
        "frames": video.frames,
        "parameters": list(PARAMETERS),
        "objects": [
            {
                "id": object_id,
                "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(i)),
                "score": [_rounded(position.score) for position in positions],
                "iou": [_rounded(p.iou.rotated if p.iou else None) for p in positions],
                "mean": [_means(positions, k) for k in range(len(PARAMETERS))],
                "sigma": [_deviations(positions, k) for k in range(len(PARAMETERS))],
            }
            for i, (object_id, positions) in enumerate(video.objects.items())
        ],
    }


def _means(positions: Sequence[Position], k: int) -> list[float | None]:
    return [_rounded(None if p.mean is None else p.mean[k]) for p in positions]


def _deviations(positions: Sequence[Position], k: int) -> list[float | None]:
    return [
        _rounded(None if p.covariance is None else math.sqrt(p.covariance[k][k])) for p in positions
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
