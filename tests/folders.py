"""Small data sets on disk, in the layouts of DAVIS16, DUTS and YouTube-VOS."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bmvtrack.data.sequence import VideoSequence

WIDTH, HEIGHT = 64, 36
NAMES = ("bear", "camel", "dog")
PALETTE = [0, 0, 0, 236, 95, 103, 249, 145, 87, 250, 200, 99, 153, 199, 148]


@contextmanager
def full_disk(largest: int = 1000) -> Iterator[None]:
    """Writing stops in the middle of every file of more bytes, as where the disk is full."""
    if sys.platform == "win32":
        pytest.skip("Windows has no such limit")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_tree(root: Path, names: tuple[str, ...] = ("ant", "bee"), length: int = 6) -> Path:
    """A DAVIS16 folder of small sequences: a bright tilted bar that moves."""
    for number, name in enumerate(names):
        images, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(length):
            mask = np.zeros((61, 81), dtype=np.uint8)
            rectangle = ((25.0 + (3 + number) * t, 30.0), (24.0, 10.0), 20.0 + 2 * t)
            cv2.fillPoly(mask, [cv2.boxPoints(rectangle).astype(np.int32)], 255)
            cv2.imwrite(str(images / f"{t:05d}.jpg"), cv2.merge([mask // 2 + 60] * 3))
            cv2.imwrite(str(masks / f"{t:05d}.png"), mask)
    return root


def object_mask(t):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[10:20, 12 + 3 * t : 30 + 3 * t] = True
    return mask


def mask_image(mask, kind):
    if kind == "palette":
        image = Image.fromarray(mask.astype(np.uint8) * 3)
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        return image
    grey = Image.fromarray(mask.astype(np.uint8) * (1 if kind == "0/1" else 255))
    return grey if kind.startswith("0/") else grey.convert(kind)


def write_davis(root, resolution="480p", names=NAMES, frames=3, kind="0/255"):
    """A tiny DAVIS16 folder: a grey frame, brighter with t, and an object that moves right."""
    for name in names:
        images, annotations = (root / k / resolution / name for k in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for t in range(frames):
            Image.new("RGB", (WIDTH, HEIGHT), (200, 20 * t, 0)).save(images / f"{t:05}.jpg")
            mask_image(object_mask(t), kind).save(annotations / f"{t:05}.png")
    return root


def still(seed, inside=True):
    """A photograph of noise, and in it an ellipse of one colour."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (90, 120, 3), dtype=np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    centre = rng.uniform(40, 50, 2) if inside else np.zeros(2)
    cv2.ellipse(mask, (tuple(centre), tuple(rng.uniform(30, 55, 2)), rng.uniform(0, 180)), 1, -1)
    image[mask > 0] = (255, 255, 255)
    return VideoSequence(f"still-{seed}", 1, lambda t: image, lambda t: mask > 0)


def write_stills(folder, count=3):
    """Photographs in the layout of DUTS."""
    for name in ("DUTS-TR-Image", "DUTS-TR-Mask"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        photograph = still(i)
        bgr = photograph.frame(0)[..., ::-1]
        cv2.imwrite(str(folder / "DUTS-TR-Image" / f"{i}.jpg"), bgr)
        mask = photograph.mask(0).astype(np.uint8) * 255
        cv2.imwrite(str(folder / "DUTS-TR-Mask" / f"{i}.png"), mask)


def write_annotation(path, annotation, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(annotation)
    if mode == "P":
        image.putpalette(PALETTE + [0] * (768 - len(PALETTE)))
    image.save(path)


def write_youtube_vos(root, clips, meta=None):
    """A folder of clips, by name lists of annotations every fifth frame; returns ``root``."""
    train = root / "train"
    for name, annotations in clips.items():
        generator = np.random.default_rng(len(name))
        for t, annotation in enumerate(annotations):
            write_annotation(train / "Annotations" / name / f"{5 * t:05}.png", annotation)
            frame = train / "JPEGImages" / name / f"{5 * t:05}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(frame), cv2.resize(coarse, annotation.shape[::-1]))
    if meta is not None:
        videos = {
            clip: {"objects": {str(k): {"category": c, "frames": ["00000"]} for k, c in ks.items()}}
            for clip, ks in meta.items()
        }
        (train / "meta.json").write_text(json.dumps({"videos": videos}))
    return root


def write_split(root, folder, split, lines):
    path = root / "ImageSets" / folder / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
