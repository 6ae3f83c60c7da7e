"""The patch φ is an affine map of the frame, known exactly, and does not alias."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from strategies import random_boxes

from bmvtrack import geometry
from bmvtrack.data import patches

HEIGHT, WIDTH = 96, 128
INSIDE = torch.tensor([[20.3, 12.7, 90.1, 80.4], [30.0, 20.0, 61.0, 75.5]], dtype=torch.float64)
EVERYWHERE = torch.tensor(
    [
        [20.3, 12.7, 90.1, 80.4],  # inside
        [-40.0, -25.5, 60.0, 41.0],  # over the corner
        [100.0, 70.0, 300.0, 220.0],  # over the opposite one
        [-50.0, -50.0, 250.0, 200.0],  # around the frame
        [50.2, 40.1, 53.0, 44.0],  # enlarged
        [-300.0, -200.0, -200.0, -150.0],  # outside
        [400.0, 20.0, 450.0, 60.0],
        [10.0, 500.0, 90.0, 610.0],
    ],
    dtype=torch.float64,
)


def ramp():
    """``(1, H, W, 2)``: every pixel holds its own coordinates x, y."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([x, y], dim=-1)[None].float()


def noise(batch=1, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = batch, HEIGHT, WIDTH, channels
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def crop(frames, windows, size=32, fill=100.0, sizes=(WIDTH, HEIGHT)):
    """:func:`patches.crop` of one or of several frames, all of one size and fill."""
    count = len(windows)
    frames = frames.expand(count, -1, -1, -1)
    return patches.crop(
        frames,
        windows,
        size,
        torch.tensor(sizes).expand(count, 2),
        torch.full((count, frames.shape[-1]), fill),
    )


@pytest.mark.parametrize(
    ("windows", "size", "tolerance"),
    [
        (INSIDE, 100, 1e-4),  # enlarged
        (torch.tensor([[20.25, 10.75, 20.25 + 64, 10.75 + 64]]), 16, 1e-4),  # a quarter
        (INSIDE, 32, 0.1),  # a broken factor: a filter's centre of gravity is a little off
        (INSIDE, 8, 0.1),
    ],
)
def test_a_ramp_is_cropped_to_the_coordinates_of_the_map(windows, size, tolerance):
    steps = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x, y], dim=-1).reshape(-1, 2)
    expected = patches.to_frame(points.expand(len(windows), -1, -1), windows.double(), size)
    result = crop(ramp(), windows, size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(result, expected.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [16, 224])
def test_to_patch_and_to_frame_undo_each_other(size):
    generator = np.random.default_rng(0)
    windows, points = EVERYWHERE.numpy(), generator.uniform(-50, 200, (8, 6, 2))
    there = patches.to_patch(points, windows, size)
    assert_allclose(patches.to_frame(there, windows, size), points, atol=1e-9)
    corners = windows.reshape(-1, 2, 2)  # of the window: half a pixel outside the outermost centres
    edges = np.broadcast_to([[-0.5, -0.5], [size - 0.5, size - 0.5]], (8, 2, 2))
    assert_allclose(patches.to_patch(corners, windows, size), edges, atol=1e-9)


def test_to_patch_is_the_same_for_tensors():
    points = np.random.default_rng(0).uniform(0, 90, (8, 3, 2))
    expected = patches.to_patch(points, EVERYWHERE.numpy(), 64)
    result = patches.to_patch(torch.from_numpy(points), EVERYWHERE, 64)
    assert_allclose(result, expected)


def test_a_window_aligned_with_the_pixels_returns_them():
    frames = noise()
    window = torch.tensor([[9.5, 19.5, 41.5, 51.5]])
    expected = frames[0, 20:52, 10:42].permute(2, 0, 1).float()
    torch.testing.assert_close(crop(frames, window)[0], expected, atol=1e-3, rtol=0)


def test_a_fine_checkerboard_shrinks_to_grey():
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    board = ((x + y) % 2 * 255).to(torch.uint8)[None, :, :, None]
    window = torch.tensor([[6.3, 5.1, 6.3 + 6 * 14, 5.1 + 6 * 14]])
    result = crop(board, window, size=14)
    assert (result - 127.5).abs().max() < 1


def test_enlarging_interpolates_between_neighbours():
    frames = noise(channels=1)
    window = torch.tensor([[29.5, 39.5, 33.5, 43.5]])  # 4 pixels to 32
    result = crop(frames, window, 32)[0, 0]
    x = torch.linspace(29.5 + 4 / 64, 33.5 - 4 / 64, 32).numpy()
    rows = frames[0, :, :, 0].numpy()
    y = x + 10
    low = np.floor(y).astype(int)
    upper, lower = (
        np.stack([np.interp(x, range(WIDTH), rows[r]) for r in low + k]) for k in (0, 1)
    )
    expected = upper + (y - low)[:, None] * (lower - upper)
    assert_allclose(result, expected, atol=1e-2)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_frame_stays_constant_under_its_mean(value):
    frames = torch.full((1, HEIGHT, WIDTH, 3), value, dtype=torch.uint8)
    result = crop(frames, EVERYWHERE, fill=float(value))
    torch.testing.assert_close(result, torch.full_like(result, value), atol=1e-3, rtol=0)


def test_filters_sum_to_one_inside_and_fade_over_the_edge():
    white = torch.full((1, HEIGHT, WIDTH, 1), 255, dtype=torch.uint8)
    inside = crop(white, INSIDE, fill=0.0)
    torch.testing.assert_close(inside, torch.full_like(inside, 255), atol=1e-3, rtol=0)
    around = crop(white, torch.tensor([[-48.5, -0.5, 79.5, 95.5]]), size=32, fill=0.0)[0, 0, 16]
    assert (around[:11] == 0).all()  # pixel j lies at −48.5 + 4(j + ½), the frame begins at 0
    assert (around.diff() >= -1e-4).all()
    assert (around[13:] > 254.9).all()


def test_a_window_outside_the_frame_is_the_fill():
    result = crop(noise(), EVERYWHERE[5:], fill=63.0)
    torch.testing.assert_close(result, torch.full_like(result, 63.0))


def test_the_padding_of_the_canvas_is_outside():
    frames = noise()
    frames[:, 60:], frames[:, :, 70:] = 255, 255
    cut = frames[:, :60, :70]
    padded = crop(frames, EVERYWHERE, sizes=(70, 60))
    torch.testing.assert_close(padded, crop(cut, EVERYWHERE, sizes=(70, 60)), atol=1e-3, rtol=0)
    assert torch.isfinite(padded).all()


def test_reading_only_what_is_needed_equals_reading_everything():
    """Each window reads a part of its frame on the CPU, and all of it on a GPU."""
    generator = torch.Generator().manual_seed(1)
    start = 300 * torch.rand(40, 2, generator=generator, dtype=torch.float64) - 120
    extent = 200 * torch.rand(40, 2, generator=generator, dtype=torch.float64) ** 2 + 1
    windows = torch.cat([torch.cat([start, start + extent], dim=1), EVERYWHERE])
    count = len(windows)
    frames = noise(count)
    sizes = torch.randint(60, 96, (count, 2), generator=generator)
    fill = 255 * torch.rand(count, 3, generator=generator)
    for size in (5, 48):
        expected = patches._resample(frames, windows, size, sizes, fill)
        result = patches.crop(frames, windows, size, sizes, fill)
        torch.testing.assert_close(result, expected, atol=5e-4, rtol=0)


def test_windows_far_larger_than_their_frame_cost_no_more(monkeypatch):
    """What a track that runs away looks through, beside others; nearly all of it lies outside."""
    wide = torch.tensor([[-900.0, -800, 1000, 1100]]).double()
    windows = torch.cat([EVERYWHERE[:1], wide, EVERYWHERE[1:2], 50 * wide])
    frames, sizes = noise(4), torch.tensor([[WIDTH, HEIGHT]] * 4)
    fill = torch.rand(4, 3) * 255
    expected = patches._read(frames, windows, 32, sizes, fill)
    read = []
    whole = patches._read
    monkeypatch.setattr(patches, "_read", lambda *a: read.append(a[1]) or whole(*a))
    result = patches.crop(frames, windows, 32, sizes, fill)
    torch.testing.assert_close(result, expected, atol=5e-4, rtol=0)
    torch.testing.assert_close(torch.cat(read), windows[[0, 2]])


def test_many_large_frames_are_resampled_in_parts(monkeypatch):
    """As float32 all at once, they would fill a GPU."""
    frames = torch.randint(0, 256, (5, 20, 30, 3), dtype=torch.uint8)
    windows = torch.rand(5, 4).double() * 8 + torch.tensor([0.0, 0, 12, 10])
    arguments = (windows, 8, torch.tensor([[30, 20]] * 5), torch.rand(5, 3))
    expected = patches._resample(frames, *arguments)
    shapes = []
    whole = torch.Tensor.float
    monkeypatch.setattr(patches, "_TOGETHER", 2 * 20 * 30 * 3)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "float", lambda t: shapes.append(t.shape) or whole(t))
        found = patches._resample(frames, *arguments)
    assert max(shape[0] for shape in shapes if shape[1:] == frames.shape[1:]) == 2
    torch.testing.assert_close(found, expected)


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu():
    tensors = noise(8), EVERYWHERE, torch.tensor([[WIDTH, HEIGHT]] * 8), torch.full((8, 3), 9.0)
    frames, windows, sizes, fill = (t.cuda() for t in tensors)
    result = patches.crop(frames, windows, 32, sizes, fill).cpu()
    expected = patches.crop(tensors[0], tensors[1], 32, *tensors[2:])
    torch.testing.assert_close(result, expected, atol=1e-2, rtol=0)


def test_a_batch_equals_its_items():
    frames, windows = noise(8), EVERYWHERE
    together = crop(frames, windows)
    alone = [crop(frames[i : i + 1], windows[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(together, torch.cat(alone))
    boxes = torch.from_numpy(random_boxes(8))
    pictures = patches.fill_box(boxes, patches.window(boxes), 16)
    for i in range(8):
        one = boxes[i : i + 1]
        torch.testing.assert_close(
            patches.fill_box(one, patches.window(one), 16), pictures[i : i + 1]
        )


def test_bytes_and_floats_agree():
    frames = noise(8)
    result = crop(frames.float(), EVERYWHERE.float())
    assert result.dtype == torch.float32
    assert result.shape == (8, 3, 32, 32)
    torch.testing.assert_close(result, crop(frames, EVERYWHERE), atol=5e-2, rtol=0)


def test_the_window_is_the_papers():
    boxes = random_boxes(50)
    result = patches.window(boxes)
    for box, window in zip(boxes, result, strict=True):
        angle = box[4]
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        points = box[:2] + (signs * box[2:4] / 2) @ turn.T
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        pad = ((right - left) + (bottom - top)) / 4
        assert_allclose(window, [left - pad, top - pad, right + pad, bottom + pad])
    assert_allclose(patches.window(torch.from_numpy(boxes)), result)


def test_the_window_is_the_same_for_every_label_of_the_box():
    boxes = random_boxes(20)
    for turns in (1.0, 2.0, 3.0):
        relabelled = geometry.relabel(boxes, np.full(20, turns))
        assert_allclose(patches.window(relabelled), patches.window(boxes))


def test_a_filled_box_has_the_boxs_share_of_the_window():
    boxes = torch.from_numpy(random_boxes(30, seed=3))
    boxes = boxes[(boxes[:, 2:4].amin(dim=1) > 20)]
    windows = patches.window(boxes)
    picture = patches.fill_box(boxes, windows, 128)
    assert picture.shape == (len(boxes), 1, 128, 128)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    share = boxes[:, 2:4].prod(dim=1) / (windows[:, 2:] - windows[:, :2]).prod(dim=1)
    torch.testing.assert_close(picture.mean(dim=(1, 2, 3)).double(), share, rtol=0.01, atol=0)


def test_a_filled_box_lies_where_the_map_says():
    boxes = torch.from_numpy(random_boxes(30, seed=4))
    other = torch.from_numpy(random_boxes(30, seed=5))  # seen through the windows of other boxes
    windows = torch.cat([patches.window(boxes), patches.window(other)])
    boxes = boxes.repeat(2, 1)
    picture = patches.fill_box(boxes, windows, 64)[:, 0] > 0.5
    for box, window, inside in zip(boxes, windows, picture, strict=True):
        y, x = np.mgrid[:64, :64]
        points = patches.to_frame(
            np.stack([x, y], axis=-1).reshape(-1, 2) * 1.0, window.numpy(), 64
        )
        corners = geometry.corners(box.numpy())
        following = np.roll(corners, -1, axis=0)
        edges = following - corners
        relative = points[:, None] - corners
        cross = edges[:, 0] * relative[..., 1] - edges[:, 1] * relative[..., 0]
        expected = (cross > 0).all(axis=1) | (cross < 0).all(axis=1)
        assert (inside.flatten().numpy() == expected).mean() > 0.999


def test_the_papers_windows_end_where_the_frame_does():
    boxes = np.array([[50.0, 40, 30, 20, 0.2], [3, 5, 20, 30, 0], [98, 60, 40, 40, 1]])
    sizes = np.array([[100, 80]] * 3)
    found = patches.clipped(patches.window(boxes), sizes)
    open_ones = patches.window(boxes)
    for window, expected in zip(found, open_ones, strict=True):
        left, top, right, bottom = expected
        assert window == pytest.approx(
            [max(left, -0.5), max(top, -0.5), min(right, 99.5), min(bottom, 79.5)]
        )
    assert (found[0] == open_ones[0]).all()
    assert (found[1:] != open_ones[1:]).any(axis=1).all()
    tensors = patches.clipped(torch.from_numpy(open_ones), torch.from_numpy(sizes))
    assert tensors.numpy() == pytest.approx(found)
