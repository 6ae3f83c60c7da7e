"""Small videos and stills, banks of them, and batches drawn from these."""

import math

import numpy as np
import torch

from bmvtrack.data.bank import FrameBank, build_bank
from bmvtrack.data.sequence import VideoSequence

SIZE = 64


def sequence(masks, name="one", colours=(10, 200, 90)):
    """A sequence of the given masks over frames of one colour, brighter with t."""
    frames = [
        np.full((*mask.shape, 3), colours, np.uint8) + np.uint8(t) for t, mask in enumerate(masks)
    ]
    return VideoSequence(name, len(masks), frames.__getitem__, masks.__getitem__)


def mask(*rectangles, width=60, height=40):
    """A mask of rectangles (left, top, right, bottom), the last two outside."""
    result = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in rectangles:
        result[top:bottom, left:right] = True
    return result


def build(*sequences, longest_side=480):
    *counts, bank = build_bank(sequences, longest_side)
    assert counts == list(range(1, len(sequences) + 1))
    assert isinstance(bank, FrameBank)
    return bank


def rectangle(x, y, w, h, angle, width=160, height=120):
    """A mask of a turned rectangle."""
    rows, columns = np.mgrid[:height, :width]
    dx, dy = columns - x, rows - y
    along = dx * math.cos(angle) + dy * math.sin(angle)
    beside = dy * math.cos(angle) - dx * math.sin(angle)
    return (np.abs(along) < w / 2) & (np.abs(beside) < h / 2)


def video():
    """Three frames of a long rectangle that moves, turns and grows."""
    states = ((70, 60, 50, 18, 0.3), (78, 58, 54, 19, 0.4), (84, 57, 56, 20, 0.5))
    return sequence([rectangle(*state) for state in states])


def several():
    """A still of two objects and a speck."""
    parts = (2, 3, 22, 23), (30, 5, 50, 19), (55, 35, 58, 38)
    return sequence([mask(*parts)])


def draw(source, count=32, seed=0):
    return source.draw(count, torch.Generator().manual_seed(seed))
