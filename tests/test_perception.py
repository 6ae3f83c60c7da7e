"""What the network sees and says, in the frame's own coordinates."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from bmvtrack import gaussian, geometry, prior
from bmvtrack.bundled import weights_folder
from bmvtrack.data import patches
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.geometry import corners, from_points
from bmvtrack.iou import rotated_iou
from bmvtrack.masks import mask_boxes, mask_geometry, mask_in_frame
from bmvtrack.models import ResNetUNet
from bmvtrack.percept import Percept
from bmvtrack.perception import BoxedFrames, Perception, as_labelled

SIZE = 96


def drawn(rbbox: np.ndarray, seen_through: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A perfect mask of one box on the patch of another."""
    through = torch.tensor(seen_through)[None]
    window = patches.window(through)
    return patches.fill_box(torch.tensor(rbbox)[None], window, SIZE), window


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2])
def test_geometry_of_the_box_itself_is_neutral(angle: float) -> None:
    box = np.array([100.0, 80.0, 60.0, 30.0, angle])
    mask, window = drawn(box, box)
    values = mask_geometry(mask[:, 0], window, torch.tensor(box)[None])[0]
    expected = [0, 0, 0, 1, 1, 0, 1, 1]
    np.testing.assert_allclose(values, expected, atol=0.06)


def test_geometry_tells_shift_and_scale() -> None:
    box = np.array([100.0, 80.0, 60.0, 30.0, 0.3])
    moved = np.array([106.0, 77.0, 66.0, 24.0, 0.3])
    mask, window = drawn(moved, box)
    values = mask_geometry(mask[:, 0], window, torch.tensor(box)[None])[0].double().numpy()
    unit = np.sqrt(60 * 30)
    np.testing.assert_allclose(values[1:3] * unit, [6, -3], atol=0.5)
    np.testing.assert_allclose(values[3:5], [1.1, 0.8], atol=0.05)
    assert values[0] == pytest.approx(np.log(1.1 * 0.8), abs=0.05)


def test_geometry_is_the_moments_of_the_pixels_over_a_half() -> None:
    """Pixel by pixel in the frame, along the sides of the box, of masks that lie across them."""
    boxes = np.array([[100.0, 80, 60, 30, 0.3], [40, 200, 20, 90, -2], [150, 90, 70, 50, 1.2]])
    turned = torch.tensor(boxes + np.array([4, -3, -6, -8, 0.5]))
    windows = patches.window(torch.tensor(boxes))
    noise = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    probabilities = patches.fill_box(turned, windows, SIZE)[:, 0] * (0.3 + 0.65 * noise)
    values = mask_geometry(probabilities, windows, torch.tensor(boxes))
    for p, window, box, found in zip(
        probabilities.double().numpy(), windows.numpy(), boxes, values, strict=True
    ):
        places, weights, (w, h, angle) = np.argwhere(p > 0.5), p[p > 0.5], box[2:]
        offsets = patches.to_frame(places[:, ::-1], window, SIZE) - box[:2]
        axes = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        covariance = np.cov(offsets @ axes, rowvar=False, aweights=weights, ddof=0)
        along, beside = np.sqrt(np.diag(covariance))
        pixel = np.prod((window[2:] - window[:2]) / SIZE)
        expected = [
            math.log(pixel * weights.sum() / (w * h)),
            *np.average(offsets, axis=0, weights=weights) / math.sqrt(w * h),
            *(math.sqrt(12) * along / w, math.sqrt(12) * beside / h),
            *(covariance[0, 1] / (along * beside), weights.mean(), p.max()),
        ]
        assert abs(expected[5]) > 0.2
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_geometry_of_an_empty_mask_is_that_of_half_a_pixel_at_the_box_s_centre() -> None:
    box = torch.tensor([[100.0, 80.0, 60.0, 30.0, 0.3]], dtype=torch.float64)
    window = patches.window(box)
    values = mask_geometry(torch.zeros(1, SIZE, SIZE), window, box)[0]
    pixel = ((window[0, 2:] - window[0, :2]) / SIZE).prod()
    assert values[0] == pytest.approx(math.log(pixel / 2 / (60 * 30)))
    assert (values[1:] == 0).all()


def test_mask_returns_to_where_it_was_in_the_frame() -> None:
    box = np.array([150.0, 110.0, 90.0, 50.0, 0.5])
    mask, window = drawn(box, np.array([140.0, 120.0, 80.0, 60.0, 0.2]))
    in_frame = mask_in_frame(mask[0, 0], window[0], 320, 240)
    rows, columns = np.nonzero(in_frame)
    found = from_points(np.stack([columns, rows], axis=-1))
    assert rotated_iou(found, box) > 0.93
    assert rotated_iou(mask_boxes(mask[:, 0], window, above=0.5)[0], box) > 0.93


def test_no_box_of_an_empty_mask_and_none_around_specks() -> None:
    box = np.array([100.0, 80.0, 60.0, 30.0, 0.3])
    mask, window = drawn(box, box)
    speckled = mask.clone()
    speckled[0, 0, 2:4, 2:4] = 1  # in a corner, far from the box
    masks = torch.cat([mask[:, 0], torch.zeros(1, SIZE, SIZE), speckled[:, 0]])
    clean, empty, found = mask_boxes(masks, window.expand(3, 4), above=0.5)
    assert np.isnan(empty).all()
    np.testing.assert_array_equal(found, clean)


def test_a_batch_sees_what_single_looks_see(perception: Perception) -> None:
    sequence = synthetic_sequence(3)
    frames = [sequence.frame(t) for t in range(3)]
    boxes = sequence.boxes[:3]
    means = [frame.reshape(-1, 3).mean(axis=0) for frame in frames]
    boxed = BoxedFrames(
        torch.from_numpy(np.stack(frames)),
        torch.from_numpy(boxes),
        torch.tensor([sequence.size] * 3),
        torch.tensor(np.array(means), dtype=torch.float32),
    )
    batch = perception(boxed)
    for i in range(3):
        single = perception.look(frames[i], boxes[i])
        for name in ("features", "mean", "covariance", "probabilities", "windows", "geometry"):
            np.testing.assert_allclose(
                getattr(single, name)[0], getattr(batch, name)[i], atol=2e-4, rtol=1e-3
            )


@pytest.mark.parametrize(
    "box",
    [
        [-300.0, 900.0, 1.0, 1.0, 0.0],
        [160.0, 120.0, 1280.0, 1280.0, 1.0],
        [0.0, 0.0, 1.0, 900.0, -3.0],
    ],
    ids=["far outside", "huge", "thin"],
)
def test_any_box_gives_finite_numbers(perception: Perception, box: list[float]) -> None:
    percept = perception.look(synthetic_sequence(3).frame(0), np.array(box))
    for name in ("features", "mean", "covariance", "probabilities", "geometry"):
        assert torch.isfinite(getattr(percept, name)).all()
    assert corners(np.array(box)).shape == (4, 2)


def test_networks_of_the_paper_mode_cannot_track() -> None:
    network = ResNetUNet(
        prior.named("paper"), width=8, input_size=64, input_channels=3, covariance="batch"
    )
    with pytest.raises(UserError, match="--mode tracking"):
        Perception(network)


def test_unknown_weights_name_those_there_are() -> None:
    with pytest.raises(UserError, match=r"bundled: .*davis16-duts"):
        weights_folder("no-such-weights")


@pytest.mark.parametrize("absurd", [-100.0, 100.0])
def test_whatever_the_network_says_its_motion_is_defined(
    perception: Perception, absurd: float
) -> None:
    """A scale that is not positive has no box, and a sine of one no Jacobian."""
    network = copy.deepcopy(perception.network)
    torch.nn.init.constant_(network.bottleneck.mean_head.bias, absurd)
    frame, boxes = synthetic_sequence(3).frame(0), synthetic_sequence(3).boxes[:2]
    mean = Perception(network).look(frame, boxes).mean
    assert (mean[:, 2] == math.copysign(0.95, absurd)).all()
    assert (mean[:, :2] == 0.05 if absurd < 0 else mean[:, :2] > 5).all()
    assert (mean[:, 3:].abs() > 5).all(), "translations are as the network says"


@pytest.mark.parametrize("template", [False, True])
def test_many_frames_are_seen_as_few_are(monkeypatch: pytest.MonkeyPatch, template: bool) -> None:
    """On a CPU, in parts that fit its caches."""
    torch.manual_seed(0)
    network = ResNetUNet(prior.named("davis16"), width=4, input_size=64, template=template)
    seer, sequence = Perception(network), synthetic_sequence(3)
    boxes = sequence.boxes[:5]
    known = seer.remember(sequence.frame(0), boxes)
    whole = seer.look(sequence.frame(1), boxes, known)
    monkeypatch.setattr("bmvtrack.perception._AT_ONCE", 2)
    parts = seer.look(sequence.frame(1), boxes, known)
    for field in fields(Percept):
        torch.testing.assert_close(getattr(parts, field.name), getattr(whole, field.name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    network = ResNetUNet(prior.named("davis16"), width=8, input_size=64)
    with pytest.raises(UserError, match="no CUDA device"):
        Perception(network, "cuda")


@pytest.mark.filterwarnings("ignore:bfloat16 on a CPU")
def test_bfloat16_says_nearly_the_same(perception: Perception) -> None:
    sequence = synthetic_sequence(3)
    reduced = Perception(perception.network, precision="bfloat16")
    exact, rough = (
        seer.look(
            sequence.frame(1),
            sequence.boxes[0],
            seer.remember(sequence.frame(0), sequence.boxes[0]),
        )
        for seer in (perception, reduced)
    )
    assert not torch.equal(rough.mean, exact.mean)
    off = gaussian.whiten(rough.mean, exact.mean, gaussian.cholesky(exact.covariance))
    assert off.abs().max() < 0.1
    torch.testing.assert_close(rough.covariance, exact.covariance, rtol=0.1, atol=1e-4)
    assert ((rough.probabilities > 0.5) != (exact.probabilities > 0.5)).float().mean() < 0.01


def test_what_the_network_says_does_not_depend_on_a_label_that_it_cannot_see(perception):
    """Both labels of one box: the same motion of the same rectangle."""
    frame = synthetic_sequence(3).frame(0)
    box = np.array([70.0, 60, 50, 30, 0.3])
    other = geometry.relabel(box, np.asarray(3.0))
    first, second = perception.look(frame, box), perception.look(frame, other)
    order = [1, 0, 2, 3, 4]
    torch.testing.assert_close(second.mean, first.mean[:, order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        second.covariance, first.covariance[:, order][:, :, order], rtol=1e-3, atol=1e-6
    )
    assert not torch.allclose(first.mean, first.mean[:, order], rtol=1e-3)


def test_the_level_side_comes_first():
    boxes = torch.tensor([[0.0, 0, 3, 2, a] for a in (0.3, -0.7, 1.4, 3.3, -1.5, 0.9)])
    mean = torch.tensor([[1.1, 0.9, 0.2, 0.3, 0.4]]).expand(6, 5)
    covariance = torch.diag(torch.arange(1.0, 6)).expand(6, 5, 5)
    means, covariances = as_labelled(mean, covariance, boxes)
    swapped = [False, False, True, False, True, True]
    assert (means[:, 0] < 1).tolist() == swapped
    assert (covariances[:, 0, 0] == 2).tolist() == swapped
    assert (means[:, 2:] == mean[:, 2:]).all()
    assert torch.equal(covariances.diagonal(dim1=1, dim2=2).sum(-1), torch.full((6,), 15.0))
