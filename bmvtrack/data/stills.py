"""Still images with masks (DUTS and ECSSD layouts): sequences of one frame."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bmvtrack.data.davis import read_mask
from bmvtrack.data.sequence import VideoSequence, read_image, read_nth
from bmvtrack.errors import UserError
from bmvtrack.files import listed

LAYOUTS = (
    ("DUTS-TR-Image", "DUTS-TR-Mask"),
    ("DUTS-TE-Image", "DUTS-TE-Mask"),
    ("images", "ground_truth_mask"),
    ("images", "masks"),
)
"""Folders of images and of masks below the root, in the order of search."""

_PHOTOGRAPHS = (".jpg", ".jpeg")


def load_stills(root: Path) -> list[VideoSequence]:
    """Every image of a folder that has a mask, as a sequence of one frame, in alphabetical order.

    Args:
        root: with one of :data:`LAYOUTS` below it: ``.jpg`` or ``.jpeg`` images, and ``.png`` masks with
            the same names.

    Raises:
        UserError: if the root or the layout is missing, or no image has a mask.
    """
    images, masks = _folders(root)
    pairs = [(image, mask) for image, mask in _pairs(images, masks) if mask.is_file()]
    if not pairs:
        raise UserError(f"no .jpg or .jpeg in {images} has a .png with the same name in {masks}")
    return [_still(image, mask) for image, mask in pairs]


def count_without_mask(root: Path) -> int:
    """Number of images that :func:`load_stills` leaves out because they have no mask."""
    return sum(not mask.is_file() for _, mask in _pairs(*_folders(root)))


def _folders(root: Path) -> tuple[Path, Path]:
    """Folder of the images and folder of the masks."""
    if not root.is_dir():
        raise UserError(f"no folder {root}; give the folder that holds the images and the masks")
    for image_folder, mask_folder in LAYOUTS:
        images, masks = root / image_folder, root / mask_folder
        if images.is_dir() and masks.is_dir():
            return images, masks
    known = ", ".join(f"{i} + {m}" for i, m in LAYOUTS)
    raise UserError(f"{root} has no known layout of images and masks (one of: {known})")


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Each image, and the path where its mask is expected."""
    photographs = [path for path in listed(images) if path.suffix.lower() in _PHOTOGRAPHS]
    return [(path, masks / f"{path.stem}.png") for path in photographs]


def _still(image: Path, mask: Path) -> VideoSequence:
    read = partial(read_nth, read_image, [image]), partial(read_nth, read_mask, [mask])
    return VideoSequence(image.stem, 1, *read)
