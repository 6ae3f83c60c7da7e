"""Sources of frames: a video file, a camera, or a folder of images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise, repeat
from pathlib import Path

import cv2
import numpy as np

from bmvtrack.arrays import ByteArray
from bmvtrack.data.sequence import read_image
from bmvtrack.errors import UserError
from bmvtrack.files import folder_name, numbered_files

DEFAULT_FPS = 25.0
_PLAUSIBLE_FPS = (0.1, 1000.0)  # some cameras and streams report 0, or their clock rate
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LAST_CAMERA = 99  # higher numbers name a backend of OpenCV as well, or are misspelt file names
_MOST_FAILURES = 100
"""Number of consecutive undecodable frames after which a video counts as ended."""


class VideoSource(ABC):
    """Frames in order, numbered from 0; undecodable frames and those of another size are skipped.

    Attributes:
        name: name of the source, usable as a file name.
        fps: frames per second.
        length: number of frames if known in advance, otherwise None.
        live: whether the source is a camera, which delivers frames in real time and without end.
        skipped: numbers of the frames skipped so far: undecodable, or of another size than the first.
    """

    def __init__(self, name: str, fps: float, length: int | None, live: bool = False) -> None:
        self.name, self.fps, self.length, self.live = name, fps, length, live
        self.skipped: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, ByteArray]]:
        """Number and frame ``(H, W, 3)``, uint8 RGB, of each frame that is not skipped."""
        shape = None
        for number, frame in enumerate(self._read()):
            if frame is None or shape not in (None, frame.shape):
                self.skipped.append(number)
            else:
                shape = frame.shape
                yield number, frame

    @abstractmethod
    def _read(self) -> Iterator[ByteArray | None]:
        """The frames; None where one cannot be decoded."""


class CapturedVideo(VideoSource):
    """A video file or a camera, read with OpenCV.

    A damaged frame that the decoder can still decode is not recognised as damaged.

    Args:
        video: a file, or the index of a camera.
        fps: frames per second; None: as the file or camera says.

    Raises:
        UserError: if it cannot be opened.
    """

    def __init__(self, video: Path | int, fps: float | None = None) -> None:
        live = isinstance(video, int)
        self._capture = _opened_quietly(video)
        if not self._capture.isOpened():
            raise UserError(
                f"cannot open camera {video}: there is none, or another program is using it"
                if live
                else f"cannot read {video} as a video: it is damaged or of an unknown format"
            )
        told = self._capture.get(cv2.CAP_PROP_FPS)
        low, high = _PLAUSIBLE_FPS
        length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(
            f"camera-{video}" if isinstance(video, int) else video.stem,
            fps or (told if low <= told <= high else DEFAULT_FPS),
            length if length > 0 and not live else None,
            live,
        )

    def _read(self) -> Iterator[ByteArray | None]:
        failed = 0
        try:
            while failed < _MOST_FAILURES:
                decoded, frame = self._capture.read()
                if not decoded:
                    failed += 1  # damaged if another frame follows, otherwise the end
                    continue
                yield from repeat(None, failed)
                failed = 0
                yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        finally:
            self._capture.release()


class FrameFolder(VideoSource):
    """A folder of images, in the order of the numbers in their names.

    Args:
        folder: folder with .jpg, .png, .bmp, .webp or .tif files; others are ignored.
        fps: frames per second; None: 25.

    Attributes:
        paths: paths of the images.

    Raises:
        UserError: if there are no images, or two with the same name.
    """

    def __init__(self, folder: Path, fps: float | None = None) -> None:
        self.paths = numbered_files(folder, _IMAGES)
        if not self.paths:
            raise UserError(f"no images in {folder}: no file in it ends in one of {_IMAGES}")
        twice = [one for one, next_ in pairwise(self.paths) if one.stem == next_.stem]
        if twice:
            raise UserError(
                f"{folder} holds {twice[0].name} and another image of that name ({len(twice)} such pairs); "
                "keep one file per frame"
            )
        super().__init__(folder_name(folder), fps or DEFAULT_FPS, len(self.paths))

    def _read(self) -> Iterator[ByteArray | None]:
        for path in self.paths:
            try:
                yield read_image(path)
            except UserError:
                yield None


def _opened_quietly(video: Path | int) -> cv2.VideoCapture:
    """Open a video without warnings about damaged frames, which are counted, or about a missing camera.

    Raises:
        UserError: if the file's name is not valid UTF-8, which would crash OpenCV.
    """
    # Absolute, because FFmpeg takes whatever precedes a colon for a protocol.
    name = video if isinstance(video, int) else str(video.absolute())
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            "OpenCV cannot open files whose name is not valid UTF-8: rename "
            f"{os.path.basename(str(name))!a}"
        ) from error
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(name)
    finally:
        logging.setLogLevel(before)


def open_source(video: str, fps: float | None = None) -> VideoSource:
    """Open the source that the user named.

    Args:
        video: a file, a folder of images, or the index of a camera.
        fps: frames per second; None: as the source says, or 25.

    Raises:
        UserError: if there is no such source, or it has no frames.
    """
    path = Path(video)
    if path.is_dir():
        return FrameFolder(path, fps)
    if path.is_file():
        return CapturedVideo(path, fps)
    if video.isdecimal() and int(video) <= _LAST_CAMERA:
        return CapturedVideo(int(video), fps)
    raise UserError(f"no video {video}: it is not a file, a folder of images or a camera index")
