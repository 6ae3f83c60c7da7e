"""A report of trackers' failures: the frame where each track breaks, with pictures around it.

Its folder holds ``failures.md``, ``images/failures/TRACKER-RUN.png`` (curves and outlines without any
image content, so that they can be published where the data cannot) and ``strips/TRACKER-RUN.jpg`` (the
frames themselves).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.files import write_bytes, write_text
from bmvtrack.tracking.failures import LEAST_OVERLAP, Failure, breaking_index, find_failure
from bmvtrack.tracking.protocols import Run
from bmvtrack.visualization import MASK_COLOUR, draw_overlay, draw_text

SHOWN = (-8, -3, -1, 0, 5, 15)
"""Frames in the pictures, relative to the one in which the track breaks; frames beyond the run are replaced
by its first or last frame."""
_TITLE, _RUNS_ON = "# Failures", "Runs on "
_COLUMNS = 3
_PREDICTED, _TRUE, _MASK = (line_style(i)[0] for i in (1, 2, 0))
_LINES = {"rotated": 1, "axis-aligned": 3, "mask": 0, "box and mask": 6}
"""Line style of each curve; predicted box and mask keep their colours."""
_TILE = 480  # width of a frame in a strip, in pixels
_LONGEST = 4  # largest aspect ratio of a strip's view
_PICTURES = re.compile(r"\]\(((?:images/failures|strips)/[^/()]+)\)")
_NONE = "–"  # the mean of no frames
_ROOM = 0.4  # margin around the boxes in a strip, as a fraction of their extent


class FailureAtlas:
    """Collects the failed runs, draws each of them, and writes the page.

    Args:
        folder: folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failures: list[Failure] = []

    def add(self, tracker: str, run: Run, sequence: VideoSequence) -> None:
        """Draw a run if it is a failure; see :func:`bmvtrack.tracking.failures.find_failure`.

        A page of the failures so far is written as well.

        Args:
            tracker: name of the tracker.
            run: the run, with its masks if there are any; they are not kept.
            sequence: the sequence that was tracked.
        """
        failure = find_failure(tracker, run, sequence)
        if failure is not None:
            self._failures.append(replace(failure, run=run.without_masks()))
            self.write("data that are not all tracked yet", "?")  # for remove_atlas()
            plot_failure(self._folder / _picture(failure), failure, sequence)
            _write_jpeg(self._folder / _strip(failure), draw_strip(failure, sequence))

    def write(self, dataset: str, weights: str) -> Path:
        """Write the page, ordered by sequence and then by tracker, and return its path."""
        page = self._folder / "failures.md"
        write_text(page, "\n".join(_page(self._failures, dataset, weights)) + "\n")
        return page


def remove_atlas(folder: Path) -> None:
    """Remove a page written by :meth:`FailureAtlas.write` and the pictures that it shows, nothing else.

    They would belong to other runs than the results beside them.
    """
    page = folder / "failures.md"
    with suppress(OSError, UnicodeDecodeError):  # missing, or not written by this class
        text = page.read_text(encoding="utf-8")
        if text.startswith(f"{_TITLE}\n\n{_RUNS_ON}"):
            for picture in _PICTURES.findall(text):
                (folder / os.fsdecode(unquote_to_bytes(picture))).unlink(missing_ok=True)
            page.unlink()


def plot_failure(path: Path, failure: Failure, sequence: VideoSequence) -> None:
    """Write a PNG of the IoU curves and of the outlines of boxes and predicted mask around the break.

    Args:
        path: PNG to write.
        failure: the failure, with its masks if there are any.
        sequence: the sequence; only its true boxes and frame size are used.
    """
    indices = shown_indices(failure)
    rows = -(-len(indices) // _COLUMNS)
    width, height = sequence.size
    tile = 3 * height / width + 0.22  # inches
    figure = Figure(figsize=(9, 2.6 + rows * tile), layout="constrained")
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[2.6, *[tile] * rows])
    _draw_curves(figure.add_subplot(grid[0, :]), failure)
    for place, index in enumerate(indices):
        axes = figure.add_subplot(grid[1 + place // _COLUMNS, place % _COLUMNS])
        _draw_outlines(axes, failure, index, sequence)
    save_figure(figure, path)


def draw_strip(failure: Failure, sequence: VideoSequence) -> ByteArray:
    """The frames around the break with true box, predicted box and the predicted mask's contour.

    All are cropped to one window around their boxes.

    Args:
        failure: the failure, with its masks if there are any.
        sequence: the sequence that was tracked.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    indices = shown_indices(failure)
    left, top, right, bottom = _window(failure, indices, sequence)
    tiles = []
    for i in indices:
        t = failure.run.start + i
        image = draw_overlay(sequence.frame(t), sequence.boxes[t], failure.run.boxes[i])
        if (mask := _mask(failure, i)) is not None:
            contours = _contours(mask)
            cv2.drawContours(image, contours, -1, MASK_COLOUR, 2, cv2.LINE_AA)
        part = image[top:bottom, left:right]
        size = _TILE, round(_TILE * part.shape[0] / part.shape[1])
        tile: ByteArray = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
        draw_text(tile, _heading(failure, i))
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _COLUMNS)
    rows = [np.concatenate(tiles[i : i + _COLUMNS], 1) for i in range(0, len(tiles), _COLUMNS)]
    return np.concatenate(rows)


def shown_indices(failure: Failure) -> list[int]:
    """Indices of the frames in the pictures, in order and without repetition; see :data:`SHOWN`."""
    last = len(failure.run) - 1
    return sorted({min(max(failure.index + offset, 0), last) for offset in SHOWN})


def _draw_curves(axes: Axes, failure: Failure) -> None:
    frames = failure.run.start + np.arange(len(failure.run))
    for name, values in failure.overlaps.items():
        colour, dashes = line_style(_LINES[name])
        axes.plot(frames, values, dashes, color=colour, linewidth=1.4, label=name)
    axes.axhline(LEAST_OVERLAP, color="0.6", linewidth=0.8, zorder=0)
    axes.axvline(failure.frame, color="0.2", linewidth=1.0)
    for index in shown_indices(failure):
        axes.plot(failure.run.start + index, 0, "^", color="0.2", markersize=5, clip_on=False)
    axes.set(xlabel="frame", ylabel="IoU", xlim=(frames[0], frames[-1]), ylim=(0, 1.01))
    title = f"{failure.tracker}, {failure.run.name}: breaks in frame {failure.frame}"
    axes.set_title(_printable(title), loc="left", fontsize="medium", parse_math=False)
    tidy(axes)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncols=len(failure.overlaps),
        frameon=False,
        fontsize="small",
    )


def _printable(name: str) -> str:
    """Bytes of a file name that are not UTF-8 as ``\\udcXX``, since no font has them."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _draw_outlines(axes: Axes, failure: Failure, index: int, sequence: VideoSequence) -> None:
    width, height = sequence.size
    mask = _mask(failure, index)
    if mask is not None:
        for contour in _contours(mask):
            axes.fill(*contour[:, 0].T, facecolor=_MASK, alpha=0.25, linewidth=0)
            axes.fill(*contour[:, 0].T, fill=False, edgecolor=_MASK, linewidth=0.8)
    true, predicted = sequence.boxes[failure.run.start + index], failure.run.boxes[index]
    for box, colour, dashes in ((true, _TRUE, "--"), (predicted, _PREDICTED, "-")):
        if np.isfinite(box).all():
            corners = geometry.corners(box)
            axes.fill(*corners.T, fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.5)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=(), yticks=())
    axes.set_aspect("equal")
    axes.spines[:].set_color("0.7")
    axes.set_title(_heading(failure, index), fontsize="small")


def _page(failures: Sequence[Failure], dataset: str, weights: str) -> Iterator[str]:
    yield _TITLE
    yield ""
    yield f"{_RUNS_ON}{dataset} with an AO under {LEAST_OVERLAP}; weights of learned trackers: `{weights}`."
    yield (
        "A track breaks in the frame before which its accumulated IoU above ½, Σ (IoU − ½), is largest. "
        "Pictures: predicted box (solid, orange), true box (dashed, green), predicted mask (blue)."
    )
    if not failures:
        yield from ("", "There are none.")
    for sequence in dict.fromkeys(failure.run.sequence for failure in failures):
        yield from ("", f"## {sequence}")
        for failure in failures:
            if failure.run.sequence == sequence:
                yield from _section(failure)


def _section(failure: Failure) -> Iterator[str]:
    first, last = failure.run.start + 1, failure.run.start + len(failure.run) - 1
    lower = failure.geometry.replace("_", "-")
    yield from ("", f"### {failure.tracker}: breaks in frame {failure.frame}", "")
    yield f"{lower.capitalize()} AO {failure.average_overlap:.2f}."
    yield from ("", f"| mean IoU | {' | '.join(failure.overlaps)} |")
    yield "|---" * (1 + len(failure.overlaps)) + "|"
    for frames, part in (
        (f"frames {first} to {failure.frame - 1}", slice(failure.index)),
        (f"frames {failure.frame} to {last}", slice(failure.index, None)),
    ):
        means = [_mean(values[part]) for values in failure.overlaps.values()]
        if set(means) != {_NONE}:
            yield f"| {frames} | {' | '.join(means)} |"
    breaks = [breaking_index(values) for values in failure.overlaps.values()]
    found = ["never" if i is None else str(failure.run.start + i) for i in breaks]
    yield f"| breaks in frame | {' | '.join(found)} |"
    yield from (
        "",
        f"![IoU over time, and outlines around the break]({_linked(_picture(failure))})",
    )
    yield from ("", f"![Frames around the break]({_linked(_strip(failure))})")


def _mean(values: FloatArray) -> str:
    scored = values[~np.isnan(values)]
    return f"{scored.mean():.2f}" if scored.size else _NONE


def _heading(failure: Failure, index: int) -> str:
    text = f"frame {failure.run.start + index}"
    iou = failure.run.overlaps[failure.geometry].iou[index]
    return text if np.isnan(iou) else f"{text}, IoU {iou:.2f}"


def _picture(failure: Failure) -> Path:
    return Path("images", "failures", f"{failure.name}.png")


def _strip(failure: Failure) -> Path:
    return Path("strips", f"{failure.name}.jpg")


def _linked(path: Path) -> str:
    """A path as the target of a Markdown link, in which spaces and parentheses would end it."""
    return quote(os.fsencode(path))


def _mask(failure: Failure, index: int) -> BoolArray | None:
    return failure.run.masks[index] if failure.run.masks else None


def _contours(mask: BoolArray) -> list[NDArray[np.int32]]:
    """Contours of a mask's parts, each ``(N, 1, 2)``: x, y in pixels."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    return [np.asarray(contour, np.int32) for contour in contours]


def _window(
    failure: Failure, indices: Sequence[int], sequence: VideoSequence
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the window that a strip shows: all of its boxes, with a margin."""
    boxes = [failure.run.boxes[indices], sequence.boxes[failure.run.start + np.array(indices)]]
    limits = geometry.bounds(np.concatenate(boxes))
    low, high = np.nanmin(limits[:, :2], axis=0), np.nanmax(limits[:, 2:], axis=0)
    sides = high - low
    # The view of a thin object is widened, so that it shows some of its surroundings.
    room = np.maximum(_ROOM * sides, (sides.max() / _LONGEST - sides) / 2)
    size = np.array(sequence.size)
    left, top = np.clip(low - room, 0, size - 2).astype(int).tolist()
    right, bottom = np.clip(high + room, (left + 2, top + 2), size).astype(int).tolist()
    return left, top, right, bottom


def _write_jpeg(path: Path, image: ByteArray) -> None:
    write_bytes(path, cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())
