"""Tracking a video from end to end: from frames to an overlay video, CSV, JSON and an HTML report."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from rich.console import Console

from bmvtrack.arrays import ByteArray
from bmvtrack.console import progress_bar
from bmvtrack.errors import UserError
from bmvtrack.files import write_text
from bmvtrack.inputs import rotated_box
from bmvtrack.tracker import Result, Tracker
from bmvtrack.video.clips import VideoWriters, slow_down
from bmvtrack.video.options import TrackOptions
from bmvtrack.video.page import report_page
from bmvtrack.video.selection import select_box
from bmvtrack.video.sources import open_source
from bmvtrack.video.tracks import Position, TrackedVideo
from bmvtrack.video.truth import TrueBox, Truth


def track_video(options: TrackOptions, console: Console | None = None) -> TrackedVideo:
    """Track objects in a video and write the files described in :class:`TrackOptions`.

    Args:
        options: what to track, and where to write.
        console: console for the final message; None: a new one on stdout.

    Raises:
        UserError: if an option, the video, a box, the truth or the weights are invalid; nothing is written
            then.
        KeyboardInterrupt: after Ctrl-C, once everything so far is written. It is not raised for a camera,
            where Ctrl-C is the normal way to stop.
    """
    options.check()
    session = _Session(options)
    video, stem = session.video, options.out / f"{session.video.name}-tracked"
    clip = stem.with_name(f"{stem.name}.mp4")
    with stop_on_interrupt() as stopped, TemporaryDirectory() as folder:
        patches = [Path(folder) / f"{i}.mp4" for i in session.boxes] if options.report else []
        with VideoWriters(clip, patches, video.fps) as clips:
            session.run(clips, stopped)
        rate = session.frame_rate()
        if rate != video.fps:
            for path in (clip, *patches):
                slow_down(path, video.fps / rate)
            video.fps = rate
        contents = {
            "csv": video.to_csv(),
            "json": json.dumps(video.to_dict(), ensure_ascii=False, allow_nan=False) + "\n",
        }
        if options.report:
            contents["html"] = report_page(video, clip, patches)
        for suffix, text in contents.items():
            write_text(stem.with_name(f"{stem.name}.{suffix}"), text)
        if not options.report:  # a report left by an earlier run would show another track
            stem.with_name(f"{stem.name}.html").unlink(missing_ok=True)
        (console or Console()).print(
            _outcome(video, stem, ["mp4", *contents]), soft_wrap=True, markup=False
        )
        if stopped() and session.ends_by_itself:
            raise KeyboardInterrupt
    return video


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Make Ctrl-C a request to stop; a second Ctrl-C raises KeyboardInterrupt. Only in the main thread.

    Yields:
        A function that returns whether a stop was requested.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Session:
    """An opened source, a tracker initialised in its first frame, and the tracked video so far.

    Attributes:
        boxes: ``(5,)`` boxes in the first frame, by object id.
        video: the tracked video, which grows during tracking.
        ends_by_itself: whether the source ends, unlike a camera.
    """

    def __init__(self, options: TrackOptions) -> None:
        source = open_source(options.video, options.fps)
        self._truth = None if options.truth is None else Truth(options.truth, source)
        self._tracker = Tracker.load(options.weights, options.device)
        self._frames = islice(source, options.max_frames)
        first = next(self._frames, None)
        if first is None:
            raise UserError(f"no frame of {options.video} can be decoded")
        self._number, self._frame = first
        height, width = self._frame.shape[:2]
        self.boxes = {
            object_id: rotated_box(box, width, height)
            for object_id, box in enumerate(self._given_boxes(options), start=1)
        }
        for object_id, box in self.boxes.items():
            self._tracker.init(self._frame, box, object_id)
        self.video = TrackedVideo(
            source.name,
            (width, height),
            source.fps,
            options.weights,
            {i: [Position.given(self._number, box)] for i, box in self.boxes.items()},
            source.skipped,
        )
        self.ends_by_itself = not source.live
        self._timed = source.live and options.fps is None
        self._seconds = 0.0
        lengths = [n for n in (source.length, options.max_frames) if n is not None]
        self._total = min(lengths, default=None)

    def run(self, clips: VideoWriters, stopped: Callable[[], bool]) -> None:
        """Track to the end, or until a stop is requested.

        Raises:
            UserError: if there is only one frame.
        """
        with progress_bar() as progress:
            task = progress.add_task("tracking", total=self._total, completed=1)
            clips.first(self._frame, self.boxes, f"frame {self._number}")
            began = time.perf_counter()
            for number, frame, results, true in self._follow():
                true_box = None if true is None else true.rbbox
                clips.next(frame, results, true_box, self._text(number, results))
                progress.advance(task)
                self._seconds = time.perf_counter() - began
                if stopped():
                    return
        if len(self.video.frames) < 2:
            raise UserError(
                f"only one frame of {self.video.name} can be decoded and has the size of the first: "
                "there is nothing to track"
            )

    def frame_rate(self) -> float:
        """The frame rate of the tracked video, after :meth:`run`: that of the source.

        A camera drops frames while others are tracked and drawn, so its rate is that of the frames that
        were processed, unless the options give one.
        """
        frames = len(self.video.frames) - 1
        return round(frames / self._seconds, 3) if self._timed else self.video.fps

    def _follow(self) -> Iterator[tuple[int, ByteArray, dict[int, Result], TrueBox | None]]:
        seconds = 0.0
        for count, (number, frame) in enumerate(self._frames, start=1):
            began = time.perf_counter()
            results = self._tracker.update_all(frame)
            seconds += time.perf_counter() - began
            self.video.speed = count / seconds
            true = None if self._truth is None else self._truth.box(number, self.video.size)
            if self._truth is not None and number >= len(self._truth):
                self.video.unscored += 1
            for object_id, result in results.items():
                self.video.objects[object_id].append(Position.found(number, result, true))
            yield number, frame, results, true

    def _given_boxes(self, options: TrackOptions) -> Sequence[Any]:
        if options.select:
            return [select_box(self._frame)]
        if options.box:
            return options.boxes()
        assert self._truth is not None
        mask = self._truth.mask(self._number)
        if not mask.any():
            raise UserError(
                f"--truth {options.truth}: the mask of the first frame is empty; give the box with --box"
            )
        return [mask]

    def _text(self, number: int, results: dict[int, Result]) -> str:
        scores = "  ".join(
            f"{result.score:.2f}" if len(results) == 1 else f"{object_id}: {result.score:.2f}"
            for object_id, result in results.items()
        )
        text = f"frame {number}   score {scores}   {self.video.speed:.0f} frames/s"
        iou = next(iter(self.video.objects.values()))[-1].iou
        return text if iou is None else f"{text}   IoU {iou.rotated:.2f}"


def _outcome(video: TrackedVideo, stem: Path, suffixes: list[str]) -> str:
    objects = "1 object" if len(video.objects) == 1 else f"{len(video.objects)} objects"
    parts = [
        f"tracked {objects} through {len(video.frames)} frames at {video.speed:.0f} frames/s",
    ]
    if video.skipped:
        frames = "frame" if len(video.skipped) == 1 else "frames"
        parts.append(
            f"{len(video.skipped)} {frames} skipped (damaged, or not the size of the first)"
        )
    if video.unscored:
        frames = "frame" if video.unscored == 1 else "frames"
        parts.append(f"{video.unscored} {frames} not scored: there are fewer true masks")
    iou = video.mean_iou()
    if iou is not None:
        parts.append(f"mean IoU {iou.rotated:.3f} rotated, {iou.axis_aligned:.3f} axis-aligned")
    return f"{'; '.join(parts)}\nwritten to {stem}.{{{','.join(suffixes)}}}"
