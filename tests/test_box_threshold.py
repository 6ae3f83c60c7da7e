"""From which probability on a mask's pixels count for its box: found, kept with the weights, and used."""

import json
import math

import numpy as np
import pytest
import torch
from networks import change_config
from rectangles import write_rectangles
from runs import small_run, train

from bmvtrack import motion, prior
from bmvtrack.data import patches
from bmvtrack.data.batch import Batch
from bmvtrack.errors import UserError
from bmvtrack.iou import rotated_iou
from bmvtrack.models import Output, Posterior, ResNetUNet, load_network
from bmvtrack.movers import move_by_mask
from bmvtrack.perception import Perception
from bmvtrack.training import PretrainOptions
from bmvtrack.training.box_threshold import THRESHOLDS, best_threshold, box_overlaps

SIZE = 128
BOXES = torch.tensor([[100.0, 80, 60, 30, 0.4], [60.0, 90, 40, 50, -0.2], [90.0, 90, 50, 50, 0.0]])
MOTIONS = torch.tensor([[1.1, 0.9, 0.1, 0.1, -0.1], [0.9, 1.0, -0.1, 0.0, 0.1], [np.nan] * 5])


def blurred(true: float) -> tuple[Output, Batch]:
    """Masks that fade out so that they end where the true boxes do if cut at the probability ``true``."""
    boxes = BOXES.double()
    moved = motion.apply(boxes, MOTIONS.double().nan_to_num(0.5), 1.0, 1.0, "object")
    windows = patches.window(boxes)
    levels = torch.zeros(len(boxes), SIZE, SIZE)
    for grow in np.linspace(-6, 6, 25):  # pixels of the frame
        larger = moved.clone()
        larger[:, 2:4] += 2 * grow
        levels += patches.fill_box(larger, windows, SIZE)[:, 0] - (grow <= 0)
    log_odds = 0.2 * levels + math.log(true / (1 - true))
    logits = torch.stack([torch.zeros_like(log_odds), log_odds], dim=1)
    nothing = torch.zeros(len(boxes), 1)
    labels = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.int64)
    posterior = Posterior(nothing, nothing, nothing)
    return Output(logits, posterior, nothing), Batch(nothing, labels, boxes, MOTIONS)


@pytest.mark.parametrize("true", [0.04, 0.125, 0.5])
def test_the_cut_is_found_at_which_masks_have_the_true_boxes(true: float) -> None:
    overlaps = box_overlaps(*blurred(true))
    assert overlaps.shape == (3, len(THRESHOLDS))
    assert overlaps[2].isnan().all()  # its true motion is not known
    cut, overlap = best_threshold(overlaps)
    assert cut == true
    assert overlap > 0.9


def test_of_no_mask_no_box_agrees() -> None:
    output, batch = blurred(0.125)
    output.logits[:, 1] = -100
    assert (box_overlaps(output, batch)[:2] == 0).all()


def test_a_few_frames_on_which_nothing_helps_do_not_decide() -> None:
    good = torch.linspace(0.5, 0.9, len(THRESHOLDS)).double().repeat(9, 1)
    bad = torch.zeros(2, len(THRESHOLDS)).double()
    bad[:, 0] = 4.0  # more than an IoU could be: in the mean it would win
    assert torch.cat([good, bad]).mean(dim=0).argmax() == 0
    assert best_threshold(torch.cat([good, bad])) == (THRESHOLDS[-1], pytest.approx(0.9))


def test_the_cut_is_kept_with_the_weights(tmp_path) -> None:
    network = ResNetUNet(prior.named("davis16"), width=2, input_size=64)
    network.box_threshold = 0.35
    network.save_weights(tmp_path / "weights")
    assert json.loads((tmp_path / "weights/config.json").read_text())["box_threshold"] == 0.35
    assert load_network(tmp_path / "weights").box_threshold == 0.35
    for wrong in (0, 1.5):
        change_config(tmp_path / "weights", box_threshold=wrong)
        with pytest.raises(
            UserError, match=r"its box_threshold is .*, not a probability in \(0, 1\)"
        ):
            load_network(tmp_path / "weights")


def test_weights_from_before_there_was_one_have_an_eighth(tmp_path) -> None:
    ResNetUNet(prior.named("davis16"), width=2, input_size=64).save_weights(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["box_threshold"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_network(tmp_path).box_threshold == 0.125


def test_masks_move_boxes_by_the_cut_of_their_weights() -> None:
    """An untrained network with a mask painted over it: the lower the cut, the larger the box."""
    painted, _ = blurred(0.125)
    areas = []
    for cut in (0.04, 0.125, 0.5):
        network = ResNetUNet(
            prior.named("davis16"), width=2, input_size=SIZE, input_channels=4
        ).eval()
        network.box_threshold = cut
        network.decode = lambda latents, encoding: painted.logits[:1]
        frame = np.zeros((160, 200, 3), np.uint8)
        percept = Perception(network).look(frame, BOXES[:1].double().numpy())
        moved = move_by_mask(
            percept, BOXES[:1].double(), torch.zeros(1, 5), torch.tensor([[200, 160]])
        )
        areas.append(float(moved[0, 2] * moved[0, 3]))
        if cut == 0.125:
            true = motion.apply(BOXES[:1].double(), MOTIONS[:1].double(), 1.0, 1.0, "object")
            assert rotated_iou(moved.numpy(), true.numpy())[0] > 0.9
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > 1.1 * areas[2]


def test_it_does_not_matter_in_which_order_the_frames_come() -> None:
    good = torch.linspace(0.5, 0.9, len(THRESHOLDS)).double().repeat(9, 1)
    bad = torch.zeros(2, len(THRESHOLDS)).double()
    bad[:, 0] = 4.0
    mixed = torch.cat([good[:4], bad, good[4:]])
    assert best_threshold(mixed) == (THRESHOLDS[-1], pytest.approx(0.9))


def test_a_cut_that_is_given_is_the_one_that_is_saved(tmp_path) -> None:
    options = small_run(tmp_path / "run", write_rectangles(tmp_path / "data"))
    metrics, _ = train(options, box_threshold=0.3)  # none of those that are tried
    assert metrics["box_threshold"] in THRESHOLDS
    for name in ("best", "last"):
        assert load_network(options.out / name).box_threshold == 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"box_threshold": 0.0}, r"--box-threshold must lie in \(0, 1\), not 0.0"),
        ({"box_threshold": 1.0}, r"--box-threshold must lie in \(0, 1\), not 1.0"),
        ({"box_threshold": 0.5, "mode": "paper"}, "is for --mode tracking"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(wrong, message) -> None:
    with pytest.raises(UserError, match=message):
        PretrainOptions(**wrong).resolved()
