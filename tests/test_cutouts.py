"""Sequences of objects cut out of photographs."""

import cv2
import numpy as np
import pytest
from banks import rectangle
from folders import still, write_stills

from bmvtrack import geometry
from bmvtrack.data import sources
from bmvtrack.data.cutouts import cut_out, cutout_sequences
from bmvtrack.data.scene import SceneOptions
from bmvtrack.errors import UserError
from bmvtrack.iou import rotated_iou

SMALL = SceneOptions(width=96, height=72, length=8, distractors=(0, 2))
ALONE = SceneOptions(width=160, height=120, length=12, distractors=(0, 0))


@pytest.fixture(scope="module")
def stills():
    return [still(i) for i in range(6)]


def test_frames_are_a_function_of_the_seed_in_any_order(stills):
    first, again, other = (cutout_sequences(stills, 1, seed, SMALL)[0] for seed in (4, 4, 5))
    assert first.name == again.name != other.name
    for t in (7, 0, 3):
        np.testing.assert_array_equal(first.frame(t), again.frame(t))
        np.testing.assert_array_equal(first.mask(t), again.mask(t))
    assert (first.frame(0) != other.frame(0)).any()
    assert first.size == (96, 72)
    assert len(first) == 8


def test_the_mask_is_where_the_object_is(stills):
    """It alone is white, before the light falls on it."""
    found = []
    for sequence in cutout_sequences(stills, 12, 1, ALONE):
        image, mask = sequence.frame(0).astype(int).sum(axis=2), sequence.mask(0)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0
        outer = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) == 0
        found.append(np.median(image[inner]) / np.median(image[outer]))
    assert np.median(found) > 1.8


def test_objects_begin_whole_and_move(stills):
    overlaps = []
    for sequence in cutout_sequences(stills, 24, 2, ALONE):
        mask = sequence.mask(0)
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
        assert mask.mean() > 0.005
        overlaps.append(float(np.nanmean(rotated_iou(sequence.boxes[:1], sequence.boxes[1:]))))
    assert np.nanmean(overlaps) < 0.75


def test_cutting_out_keeps_colours_and_box():
    photograph = still(3)
    image, mask = photograph.frame(0), photograph.mask(0)
    cutout = cut_out(image, mask)
    opaque = cutout.picture[..., 3] > 127
    np.testing.assert_allclose(geometry.from_mask(opaque), cutout.rbbox, atol=2.5)
    assert abs(int(opaque.sum()) - int(mask.sum())) < 0.1 * mask.sum()
    assert (cutout.picture[..., :3][opaque] == 255).all()
    border = np.concatenate([cutout.picture[[0, -1]].reshape(-1, 4), cutout.picture[:, 0]])
    assert (border[:, 3] == 0).all()


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((90, 120), bool),
        rectangle(60, 45, 6, 6, 0, 120, 90),  # a speck
        np.ones((90, 120), bool),
        rectangle(0, 45, 60, 60, 0, 120, 90),  # half of it out of the picture
    ],
    ids=["nothing", "speck", "everything", "cut"],
)
def test_what_is_no_whole_object_is_not_cut_out(mask):
    assert cut_out(np.zeros((90, 120, 3), np.uint8), mask) is None


def test_bad_requests_are_refused(stills):
    with pytest.raises(UserError, match="at least 2 images with masks, not 1"):
        cutout_sequences(stills[:1], 3)
    with pytest.raises(UserError, match="not 0 with 0"):
        cutout_sequences(stills, 0)
    with pytest.raises(UserError, match="not 3 with -1"):
        cutout_sequences(stills, 3, -1)
    with pytest.raises(UserError, match="none has an object that can be cut out"):
        cutout_sequences([still(i, inside=False) for i in range(3)], 1, 0, SMALL)[0].frame(0)


def test_are_data_by_name(tmp_path):
    write_stills(tmp_path)
    made = sources.load_sequences(f"cutouts:{tmp_path}", synthetic_count=2, seed=7)
    assert [s.name for s in made] == ["cutouts-7000000", "cutouts-7000001"]
    assert made[0].frame(29).shape == (240, 320, 3)
    with pytest.raises(UserError, match="needs a folder: cutouts:FOLDER"):
        sources.parse("cutouts")


def test_validation_shows_no_still_of_training(tmp_path, monkeypatch):
    write_stills(tmp_path, 8)
    shown = []
    monkeypatch.setattr(
        sources, "cutout_sequences", lambda stills, count, seed: shown.append((stills, count, seed))
    )
    sources.split_cutouts(f"cutouts:{tmp_path}", 0.3, 3, count=8, made_from=5)
    (training, *first), (validation, *second) = shown
    assert (first, second) == ([8, 5], [2, 5])
    names = [{still.name for still in stills} for stills in (training, validation)]
    assert [len(part) for part in names] == [6, 2]
    assert not names[0] & names[1]
    with pytest.raises(UserError, match="need at least 2 on either side"):
        sources.split_cutouts(f"cutouts:{tmp_path}", 0.01, 3, count=8, made_from=5)
