"""Sequences of objects cut out of photographs."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from banks import rectangle
from folders import still, write_stills

from bmvtrack import geometry
from bmvtrack.data import cutouts, sources
from bmvtrack.data.cutouts import Cutout, cut_out, cutout_sequences
from bmvtrack.data.scene import SceneOptions, checked_prior
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
    with pytest.raises(UserError, match="not 0 and 0"):
        cutout_sequences(stills, 0)
    with pytest.raises(UserError, match="not 3 and -1"):
        cutout_sequences(stills, 3, -1)
    with pytest.raises(UserError, match="none of 64 images has an object that can be cut out"):
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
    empty = tmp_path / "DUTS-TR-Mask" / "2.png"
    cv2.imwrite(str(empty), np.zeros_like(cv2.imread(str(empty), cv2.IMREAD_UNCHANGED)))
    thin = tmp_path / "DUTS-TR-Mask" / "5.png"  # its object is lost when it is reduced
    lines = np.zeros_like(cv2.imread(str(thin), cv2.IMREAD_UNCHANGED))
    lines[:, 7] = 255
    cv2.imwrite(str(thin), lines)
    sources.split_cutouts(f"cutouts:{tmp_path}", 0.5, 3, count=8, made_from=5)
    bank = sources.load_bank("", sources.load_sequences(f"duts:{tmp_path}"), 32)
    assert set(range(8)) - set(bank.group.tolist()) == {2, 5}
    for (stills, *_), targets in zip(shown[2:], bank.split(0.5, 3, 8), strict=True):
        held = {f"{group}" for group in bank.group[targets].tolist()}
        assert held == {still.name for still in stills} - {"2", "5"}
    with pytest.raises(UserError, match="need at least 2 on either side"):
        sources.split_cutouts(f"cutouts:{tmp_path}", 0.01, 3, count=8, made_from=5)


@pytest.mark.parametrize(
    ("left", "top", "right", "bottom", "whole"),
    [
        (4, 4, 116, 86, False),  # most of the picture
        (0, 30, 42, 48, False),  # 15 % of its outline at the edge
        (0, 30, 50, 40, True),  # 8 %
    ],
)
def test_an_object_may_touch_the_edge_and_not_fill_the_picture(left, top, right, bottom, whole):
    mask = np.zeros((90, 120), bool)
    mask[top:bottom, left:right] = True
    assert (cut_out(np.zeros((90, 120, 3), np.uint8), mask) is not None) == whole


def test_nothing_beside_the_mask_is_cut_out_with_it():
    photograph = still(3)
    cutout = cut_out(photograph.frame(0), photograph.mask(0))
    assert (cutout.picture[..., 3] > 0).sum() <= photograph.mask(0).sum()


def sprite(stills, seed, options=ALONE, target=None):
    scene = cutouts._CutoutScene(0, options, checked_prior(options.prior), stills)
    return scene.make_sprite(np.random.default_rng(seed), target)


def opacity(made, t, size=(160, 120)):
    result = np.zeros(size[::-1], np.uint8)
    rows, columns, alpha = made.cover(t, *size)
    result[rows, columns] = alpha[..., 0]
    return result


def test_an_object_lies_in_its_box(stills):
    picture = rectangle(80, 60, 70, 30, 0.4)[..., None].repeat(4, axis=-1) * np.uint8(255)
    cutout = Cutout(picture, np.array([80.0, 60, 70, 30, 0.4]))
    for angle in (0.0, 0.4, -1.1):
        box = np.array([70.0, 55, 60, 20, angle])
        made = replace(
            sprite(stills, 0), cutout=cutout, rbboxes=np.tile(box, (12, 1)), bends=np.zeros(2)
        )
        assert rotated_iou(geometry.from_mask(opacity(made, 0) > 127), box) > 0.85


def test_an_object_bends_while_it_rests(stills):
    made = sprite(stills, 0)
    resting = replace(made, rbboxes=made.rbboxes[:1].repeat(12, axis=0), bends=np.full(2, 0.1))
    assert (opacity(resting, 0) != opacity(resting, 6)).any()
    stiff = replace(resting, bends=np.zeros(2))
    assert (opacity(stiff, 0) == opacity(stiff, 6)).all()
    assert (opacity(resting, 0) != opacity(stiff, 0)).any()


def test_an_object_adds_light_where_it_is_and_nowhere_else(stills):
    for seed in range(4):
        layer = sprite(stills, seed).paint(0, 160, 120)
        assert (layer.picture[..., :3] <= 255 * layer.picture[..., 3:] + 1e-2).all()


def test_a_small_object_is_smoothed_before_it_is_shrunk(stills):
    made = sprite(stills, 0)
    noise = np.random.default_rng(0).integers(0, 2, (200, 200, 4), dtype=np.uint8) * np.uint8(255)
    noise[..., 3] = 255
    box = np.array([80, 60, 20, 20, 0.0])
    tiny = Cutout(noise, np.array([100, 100, 200, 200, 0.0]))
    made = replace(made, cutout=tiny, rbboxes=np.tile(box, (12, 1)), bends=np.zeros(2))
    seen = made._seen(0, slice(53, 67), slice(73, 87))
    assert seen[..., :3].std() < 40  # of single pixels it is 127


def test_an_object_fits_into_a_frame_of_any_shape(stills):
    wide = SceneOptions(width=192, height=64, length=1, distractors=(0, 0))
    for seed in range(12):
        mask = opacity(sprite(stills, seed, wide), 0, (192, 64)) > 127
        assert not mask[[0, -1]].any()


def test_a_quarter_of_the_others_look_like_the_target(stills):
    target = sprite(stills, 0)
    alike = [sprite(stills, seed, target=target).cutout is target.cutout for seed in range(1, 200)]
    assert 0.15 < np.mean(alike) < 0.35


def test_rows_of_an_object_are_moved_aside_as_they_are(stills):
    """Along x an object bends with y: what is above and below moves apart, and no row gets wider."""
    picture = np.zeros((120, 160, 4), np.uint8)
    picture[20:100, 40:120] = 255
    box = np.array([79.5, 59.5, 79, 79, 0.0])
    made = replace(
        sprite(stills, 0),
        cutout=Cutout(picture, box),
        rbboxes=np.tile(box, (12, 1)),
        bends=np.array([0.1, 0.0]),
        waves=np.full(2, math.pi),
    )
    rows = (opacity(made, 0) > 127)[25:95]
    assert np.abs(rows.sum(axis=1) - 80).max() <= 1
    assert np.ptp(rows.argmax(axis=1)) > 5


def test_the_background_fills_frames_of_any_shape(stills):
    for width, height in ((64, 192), (192, 64)):
        options = SceneOptions(width=width, height=height, length=1, distractors=(0, 0))
        scene = cutouts._CutoutScene(0, options, checked_prior(options.prior), stills)
        assert scene.background.shape == (1.5 * height, 1.5 * width, 3)
