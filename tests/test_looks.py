"""The second look at what the first one found."""

import numpy as np
import pytest
import torch

from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.masks import mask_boxes, patch_in_frame
from bmvtrack.models import MultivariationalNetwork
from bmvtrack.segmentation.looks import look_twice
from bmvtrack.segmentation.protocols import honest, load_segmenter
from bmvtrack.segmentation.views import view_objects, view_whole


@pytest.fixture(scope="module")
def network() -> MultivariationalNetwork:
    return load_segmenter(DEFAULT_WEIGHTS)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Two images of different sizes, each with an object in it."""
    sequence = synthetic_sequence(5)
    return [sequence.frame(0), sequence.frame(8)[:200]]


@torch.inference_mode()
def test_the_log_odds_of_both_looks_and_their_mirror_images_add_up(network, frames) -> None:
    for frame, found in zip(frames, look_twice(network, frames), strict=True):
        height, width = frame.shape[:2]
        mirrored = np.ascontiguousarray(frame[:, ::-1])

        def seen(image, boxes=None):
            views = view_objects(network, [image], boxes) if boxes is not None else None
            views = views or view_whole(network, [image])
            return honest(network, network.encode(views.inputs)), views.windows

        as_is, windows = seen(frame)
        first = (as_is + seen(mirrored)[0].flip(-1)) / 2
        box = mask_boxes(first.sigmoid(), windows, above=0.5)
        assert np.isfinite(box).all()
        x, y, w, h, angle = box[0]
        as_is, near = seen(frame, box)
        second = (
            as_is + seen(mirrored, np.array([[width - 1 - x, y, w, h, -angle]]))[0].flip(-1)
        ) / 2
        expected = patch_in_frame(first[0], windows[0], width, height)
        expected += patch_in_frame(second[0], near[0], width, height)
        np.testing.assert_allclose(found, expected, atol=2e-2)


def test_a_mirror_image_has_the_mirrored_map(network, frames) -> None:
    for straight, mirrored in zip(
        look_twice(network, frames), look_twice(network, [f[:, ::-1] for f in frames]), strict=True
    ):
        probabilities = [1 / (1 + np.exp(-odds)) for odds in (straight, mirrored[:, ::-1])]
        assert np.abs(probabilities[0] - probabilities[1]).mean() < 2e-3


def test_where_nothing_is_found_there_is_no_second_look(network, frames, monkeypatch) -> None:
    plain = network.decode

    def nothing(latents, encoding):
        logits = plain(latents, encoding)
        logits[:, 0] += 100  # background, everywhere
        return logits

    monkeypatch.setattr(network, "decode", nothing)
    for frame, found in zip(frames, look_twice(network, frames), strict=True):
        assert found.shape == frame.shape[:2]
        assert (found < -50).all()  # one look: two would be below twice that
        assert (found > -150).all()


def test_a_patch_is_put_back_up_to_its_edge():
    """A window that ends at the frame's edge says as much there as anywhere."""
    values = torch.full((64, 64), 0.7)
    found = patch_in_frame(values, torch.tensor([-0.5, -0.5, 255.5, 191.5]), 256, 192)
    np.testing.assert_allclose(found, 0.7, rtol=1e-6)
    inside = patch_in_frame(values, torch.tensor([9.5, 19.5, 49.5, 39.5]), 256, 192)
    expected = np.zeros((192, 256))
    expected[20:40, 10:50] = 0.7
    np.testing.assert_allclose(inside, expected, rtol=1e-6)
