"""What hypothesis draws boxes and motion from."""

import math

import numpy as np
from hypothesis import strategies as st

WIDTH, HEIGHT = 854, 480


def vectors(*limits: tuple[float, float]) -> st.SearchStrategy[np.ndarray]:
    """Float64 vectors whose i-th number lies between the i-th limits."""
    return st.tuples(*(st.floats(*pair) for pair in limits)).map(np.array)


def rbboxes(smallest: float = 1.0) -> st.SearchStrategy[np.ndarray]:
    """Rotated boxes in and around a frame of DAVIS's size, under any label."""
    return vectors(
        (-100, WIDTH + 100), (-100, HEIGHT + 100), (smallest, 600), (smallest, 600), (-7, 7)
    )


def motions() -> st.SearchStrategy[np.ndarray]:
    """Object motion with scales from a fifth to five and turns of up to 89°."""
    limit = math.sin(math.radians(89))
    return vectors((0.2, 5), (0.2, 5), (-limit, limit), (-3, 3), (-3, 3))


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    """``(count, 5)`` boxes close enough to each other that most overlap."""
    generator = np.random.default_rng(seed)
    low, high = (380, 200, 5, 5, -math.pi), (460, 280, 150, 150, math.pi)
    return generator.uniform(low, high, (count, 5))
