"""The videos written during tracking: the overlay, and the patches of each object."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.files import atomic_file
from bmvtrack.tracker import Result
from bmvtrack.video.overlay import colour_of, draw_first, draw_results, patch_picture
from bmvtrack.visualization import video_writer


class VideoWriters:
    """A context manager that writes an overlay video and, per object, a video of its patches.

    Each video has one frame per call. It is written completely, or not at all if the context ends with an
    error.

    Args:
        overlay: file of the overlay video.
        patches: one file per object, or empty.
        fps: frames per second.
    """

    def __init__(self, overlay: Path, patches: Sequence[Path], fps: float) -> None:
        self._overlay, self._patches, self._fps = overlay, patches, fps

    def __enter__(self) -> VideoWriters:
        with ExitStack() as stack:
            self._append, *self._append_patch = (
                stack.enter_context(video_writer(path, self._fps))
                for path in (self._overlay, *self._patches)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def first(self, frame: ByteArray, boxes: Mapping[int, FloatArray], text: str) -> None:
        """Write the frame that tracking starts from, with the given boxes."""
        self._append(draw_first(frame, boxes, text))
        for i, (append, box) in enumerate(zip(self._append_patch, boxes.values(), strict=False)):
            append(patch_picture(frame, box, None, colour_of(i)))

    def next(
        self,
        frame: ByteArray,
        results: Mapping[int, Result],
        true_box: FloatArray | None,
        text: str,
    ) -> None:
        """Write a later frame; see :func:`bmvtrack.video.overlay.draw_results`."""
        self._append(draw_results(frame, results, true_box, text))
        found = zip(self._append_patch, results.values(), strict=False)
        for i, (append, result) in enumerate(found):
            append(patch_picture(frame, result.previous, result.probabilities, colour_of(i)))


def slow_down(path: Path, factor: float) -> None:
    """Stretch the duration of an MP4 by a factor, without encoding it again.

    Args:
        path: the file; it is replaced atomically.
        factor: positive; below 1 the video becomes faster.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    stretched = ":".join(
        f"{name.lower()}={name}*{factor:.6f}" for name in ("PTS", "DTS", "DURATION")
    )
    path = path.absolute()  # because ffmpeg takes whatever precedes a colon for a protocol
    with atomic_file(path) as temporary:
        command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(path), "-c", "copy"]
        subprocess.run([*command, "-bsf:v", f"setts={stretched}", str(temporary)], check=True)
