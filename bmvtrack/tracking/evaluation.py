"""Running many trackers on many sequences, with a video of each if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bmvtrack.arrays import ByteArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.tracking.metrics import GEOMETRIES
from bmvtrack.tracking.protocols import Protocol, Run, one_thread, run_protocol
from bmvtrack.tracking.trackers import TrackerFactory
from bmvtrack.visualization import draw_overlay, write_video

VIDEO_FPS = 24


def evaluate(
    factories: Mapping[str, TrackerFactory],
    sequences: Sequence[VideoSequence],
    protocol: Protocol = "ope",
    segments: int = 10,
    videos: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Run]]:
    """Run each tracker on each sequence, on one CPU thread.

    Args:
        factories: of the trackers, by name.
        sequences: that :func:`~bmvtrack.tracking.protocols.check_sequence` has passed; one at a
            time is held in memory.
        protocol: ``ope``, ``tre`` or ``sre``.
        segments: starts per sequence of ``tre``.
        videos: folder for ``TRACKER/SEQUENCE.mp4`` of the first run on each sequence; None: none.
        advance: called after each tracker on each sequence.

    Returns:
        The runs by tracker, sequences in the order given.
    """
    results: dict[str, list[Run]] = {name: [] for name in factories}
    for sequence in sequences:
        held = sequence.in_memory()
        for name, factory in factories.items():
            with one_thread():
                runs = run_protocol(protocol, factory, held, segments, videos is not None)
            if videos is not None:
                path = videos / name / f"{sequence.name}.mp4"
                write_video(path, overlays(name, runs[0], held), VIDEO_FPS)
                runs[0] = runs[0].without_masks()
            results[name] += runs
            advance()
    return results


def overlays(name: str, run: Run, sequence: VideoSequence) -> Iterator[ByteArray]:
    """The frames of a run with true and predicted box, predicted mask where kept, and IoU."""
    masks = run.masks or (None,) * len(run)
    for i, (rbbox, mask) in enumerate(zip(run.boxes, masks, strict=True)):
        t = run.start + i
        text = f"{name}   frame {t}"
        if np.isfinite(run.overlaps["rotated"].iou[i]):
            axis_aligned, rotated = (run.overlaps[geometry].iou[i] for geometry in GEOMETRIES)
            text += f"   IoU {rotated:.2f}   axis-aligned {axis_aligned:.2f}"
        yield draw_overlay(sequence.frame(t), sequence.boxes[t], rbbox, mask, text)
