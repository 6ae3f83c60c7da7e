"""Running several trackers on several sequences, with callbacks that draw the runs."""

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

Watcher = Callable[[str, Run, VideoSequence], None]
"""A callback; it receives a tracker's name, its run with the predicted masks, and the sequence in memory."""


def evaluate(
    factories: Mapping[str, TrackerFactory],
    sequences: Sequence[VideoSequence],
    protocol: Protocol = "ope",
    segments: int = 10,
    watchers: Sequence[Watcher] = (),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Run]]:
    """Run each tracker on each sequence, on one CPU thread.

    Args:
        factories: factories of the trackers, by name.
        sequences: sequences that passed :func:`~bmvtrack.tracking.protocols.check_sequence`; one at a
            time is held in memory.
        protocol: ``ope``, ``tre`` or ``sre``.
        segments: starts per sequence for ``tre``.
        watchers: callbacks for the first run of each tracker on each sequence; if there are any, that run
            has the predicted masks.
        advance: called after each tracker on each sequence.

    Returns:
        The runs of each tracker, with the sequences in the given order.
    """
    results: dict[str, list[Run]] = {name: [] for name in factories}
    for sequence in sequences:
        held = sequence.in_memory()
        for name, factory in factories.items():
            with one_thread():
                runs = run_protocol(protocol, factory, held, segments, bool(watchers))
            for watch in watchers:
                watch(name, runs[0], held)
            results[name] += [run.without_masks() for run in runs]
            advance()
    return results


def write_overlay(folder: Path, name: str, run: Run, sequence: VideoSequence) -> None:
    """Write ``TRACKER/SEQUENCE.mp4``; with its folder bound, a :data:`Watcher`."""
    path = folder / name / f"{sequence.name}.mp4"
    write_video(path, overlays(name, run, sequence), VIDEO_FPS)


def overlays(name: str, run: Run, sequence: VideoSequence) -> Iterator[ByteArray]:
    """The frames of a run with the true and predicted box, the predicted mask if kept, and the IoU."""
    masks = run.masks or (None,) * len(run)
    for i, (rbbox, mask) in enumerate(zip(run.boxes, masks, strict=True)):
        t = run.start + i
        text = f"{name}   frame {t}"
        if np.isfinite(run.overlaps["rotated"].iou[i]):
            axis_aligned, rotated = (run.overlaps[geometry].iou[i] for geometry in GEOMETRIES)
            text += f"   IoU {rotated:.2f}   axis-aligned {axis_aligned:.2f}"
        yield draw_overlay(sequence.frame(t), sequence.boxes[t], rbbox, mask, text)
