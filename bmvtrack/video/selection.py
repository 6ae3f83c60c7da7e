"""Drawing the first box with the mouse."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np

from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.errors import UserError

_TITLE = "Draw a box with the mouse; Enter: take it, C: cancel"
_MOST_PIXELS = (1280, 720)  # of the window: selectROI's can't be resized
_PROBE = "import cv2; cv2.namedWindow('bmvtrack'); cv2.waitKey(1)"


def select_box(frame: ByteArray) -> FloatArray:
    """Let somebody draw a box on a frame.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(4,)`` float64 x, y, w, h in pixels of the frame.

    Raises:
        UserError: if no window can be opened, or no box was drawn.
    """
    if not can_open_windows():
        raise UserError(
            "--select opens a window to draw in, and none can be opened here (no display, or an "
            "OpenCV without windows); give --box x,y,w,h"
        )
    height, width = frame.shape[:2]
    scale = max(1.0, width / _MOST_PIXELS[0], height / _MOST_PIXELS[1])
    shown = cv2.resize(frame, (round(width / scale), round(height / scale)))
    box = cv2.selectROI(_TITLE, cv2.cvtColor(shown, cv2.COLOR_RGB2BGR), showCrosshair=True)
    cv2.destroyAllWindows()
    if not (box[2] and box[3]):
        raise UserError("no box was drawn; drag one with the mouse and press Enter")
    result: FloatArray = np.array(box, dtype=np.float64) * scale
    return result


def can_open_windows() -> bool:
    """Whether OpenCV has a display here.

    Tried in a process of its own: without a display, OpenCV's window library ends the process.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False)
    return done.returncode == 0
