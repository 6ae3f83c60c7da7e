"""Selecting the first box with the mouse."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import cv2
import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.errors import UserError
from bmvtrack.visualization import PREDICTED_COLOUR, draw_box, draw_text

_TITLE = "Draw a box with the mouse; Enter: take it, Esc: cancel"
_MOST_PIXELS = (1280, 720)  # largest size of the window, which is that of the image in it
_LEAST_PIXELS = 3  # shortest side of a box; anything less is a click
_ENTER, _SPACE, _ESCAPE = (10, 13), 32, 27
_MILLISECONDS = 20  # between two polls of the keyboard
_PROBE = "import cv2; cv2.namedWindow('bmvtrack'); cv2.waitKey(1)"


def select_box(frame: ByteArray) -> FloatArray:
    """Let the user draw a box on a frame.

    ``cv2.selectROI`` is not used, because it reopens its window when it is closed and ignores Ctrl-C.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(4,)`` float64 x, y, w, h in pixels of the frame.

    Raises:
        UserError: if no window can be opened, or no box was drawn.
    """
    if not can_open_windows():
        raise UserError(
            "--select needs a window to draw in, but none can be opened here (no display, or an "
            "OpenCV without window support); give --box x,y,w,h"
        )
    # OpenCV's Qt warns about missing fonts that it does not need.
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
    height, width = frame.shape[:2]
    scale = max(1.0, width / _MOST_PIXELS[0], height / _MOST_PIXELS[1])
    shown = cv2.resize(frame, (round(width / scale), round(height / scale)))
    try:
        box: FloatArray = scale * _drawn(np.asarray(shown, dtype=np.uint8))
        return box
    finally:
        cv2.destroyAllWindows()


def can_open_windows() -> bool:
    """Whether OpenCV can open windows here.

    This is tried in a subprocess, because without a display OpenCV's window library ends the process.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False)
    return done.returncode == 0


class _Mouse:
    """A mouse callback that draws a box from where the left button is pressed to where it is released.

    Args:
        size: width and height of the image, to which the box is clipped.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = np.array(size, dtype=np.float64)
        self._corners: FloatArray = np.zeros((2, 2))
        self._down = False

    def __call__(self, event: int, x: int, y: int, flags: int, data: Any) -> None:
        if event == cv2.EVENT_LBUTTONDOWN:
            self._down = True
            self._corners[0] = x, y
        if self._down:
            self._corners[1] = x, y
        if event == cv2.EVENT_LBUTTONUP:
            self._down = False

    @property
    def box(self) -> FloatArray | None:
        """``(4,)`` x, y, w, h; None while there is no box or it is too small."""
        corners = np.clip(self._corners, 0, self._size)
        low, size = corners.min(axis=0), np.ptp(corners, axis=0)
        return np.concatenate([low, size]) if (size >= _LEAST_PIXELS).all() else None


def _drawn(shown: ByteArray) -> FloatArray:
    mouse = _Mouse((shown.shape[1], shown.shape[0]))
    cv2.namedWindow(_TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
    cv2.setMouseCallback(_TITLE, mouse)
    while True:
        picture = np.array(shown)
        if mouse.box is not None:
            x, y, w, h = mouse.box
            draw_box(picture, geometry.upright(np.array([x, y, x + w, y + h])), PREDICTED_COLOUR)
        draw_text(picture, _TITLE)
        cv2.imshow(_TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(_MILLISECONDS) & 0xFF
        if key in (*_ENTER, _SPACE) and mouse.box is not None:
            return mouse.box
        if key in (_ESCAPE, ord("c"), ord("C")) or not _is_open():
            raise UserError("no box was drawn; drag one with the mouse and press Enter")


def _is_open() -> bool:
    try:
        return bool(cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:  # raised by Qt when its last window is closed
        return False
