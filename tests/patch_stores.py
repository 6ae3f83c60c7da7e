"""A small YouTube-VOS, and stores of patches made of it."""

import numpy as np
from folders import write_youtube_vos

from bmvtrack.data.patch_store import PatchStore
from bmvtrack.data.preparation import finish, prepare
from bmvtrack.data.youtube_vos import load_youtube_vos

SIZE = 64


def clip(number):
    """Annotations of two lopsided objects; in every third clip the second is lost for a frame."""
    annotations = []
    for t in range(3):
        annotation = np.zeros((60, 90), np.uint8)
        annotation[10 + t : 30 + t, 8 + number : 30 + number] = 1
        annotation[10 + t : 20 + t, 8 + number : 16 + number] = 0
        if number % 3 or t != 1:
            annotation[35:50, 50 - 2 * t : 75 - number] = 2
            annotation[35:40, 60:] = 0
        annotations.append(annotation)
    return annotations


def small_youtube_vos(root):
    """Five clips, eight objects that are kept, three categories and one that is not here."""
    clips = {f"c{number}": clip(number) for number in range(5)}
    meta = {name: {1: "dog", 2: ("ape", "cat")[i % 2]} for i, name in enumerate(clips)}
    return load_youtube_vos(write_youtube_vos(root, clips, meta | {"elsewhere": {1: "bee"}}))


def make(data, out, workers=1, categories=None, size=SIZE, **split):
    """The store in ``out``; three clips train and two validate unless told otherwise."""
    shards = prepare(data, out, size, workers)
    options = {"split_by": "video", "validation_share": 0.4, "seed": 0} | split
    finish(out, shards, size, data.categories if categories is None else categories, **options)
    return PatchStore(out)
