"""The HTML report of a tracked video, in one file: the video, plots over time, and the patches."""

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
from bmvtrack.video.tracks import Position, TrackedVideo

_DIGITS = 5  # significant digits of plotted values


def report_page(video: TrackedVideo, clip: Path, patch_clips: Sequence[Path]) -> str:
    """The HTML of the page, which loads nothing from outside.

    Args:
        video: the tracked video, whose values are plotted.
        clip: MP4 with one frame per tracked frame.
        patch_clips: one such MP4 per object.

    Returns:
        HTML with all data as JSON in the element ``data``, including the MP4s in base64.
    """
    data = page_data(video)
    data["clip"] = _base64(clip)
    for entry, path in zip(data["objects"], patch_clips, strict=True):
        entry["patches"] = _base64(path)
    # "<" is escaped, because a script element ends at "</" even inside a JSON string.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("bmvtrack.video").joinpath("report.html").read_text("utf-8")
    parts = {"@TITLE@": html.escape(video.name), "@DATA@": text}
    return re.sub("@TITLE@|@DATA@", lambda mark: parts[mark[0]], template)


def page_data(video: TrackedVideo) -> dict[str, Any]:
    """The data of the page without the videos: values per frame, None where there is none."""
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
                "score": [_rounded(position.score) for position in positions],
                "iou": [_rounded(p.iou.rotated if p.iou else None) for p in positions],
                "mean": [_means(positions, k) for k in range(len(PARAMETERS))],
                "sigma": [_deviations(positions, k) for k in range(len(PARAMETERS))],
            }
            for object_id, positions in video.objects.items()
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
