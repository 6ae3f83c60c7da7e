"""Synthetic sequences: exact, reproducible, believable, and hard enough."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from bmvtrack import geometry, prior
from bmvtrack.data import textures
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.silhouettes import FAMILIES, silhouette
from bmvtrack.data.sprites import TexturedSprite
from bmvtrack.data.synthetic import synthetic_sequence, synthetic_sequences
from bmvtrack.errors import UserError
from bmvtrack.iou import rotated_iou


@pytest.fixture(scope="module")
def sequences() -> list[VideoSequence]:
    return synthetic_sequences(32)


def test_frames_and_masks(sequences):
    sequence = sequences[0]
    assert sequence.name == "synthetic-000000"
    assert len(sequence) == 30
    assert sequence.size == (320, 240)
    assert sequence.frame(3).shape == (240, 320, 3)
    assert sequence.frame(3).dtype == np.uint8
    assert sequence.mask(3).shape == (240, 320)
    assert sequence.mask(3).dtype == np.bool_
    with pytest.raises(IndexError):
        sequence.frame(30)


def test_is_a_function_of_seed_and_time():
    first, second = synthetic_sequence(5), synthetic_sequence(5)
    alone = second.frame(5)
    for t in (0, 9, 5):
        first.frame(t)
    assert np.array_equal(first.frame(5), alone)
    assert np.array_equal(first.mask(7), second.mask(7))
    assert np.array_equal(first.boxes, second.boxes)
    other = synthetic_sequence(6)
    assert not np.array_equal(other.frame(5), alone)
    assert not np.array_equal(other.mask(5), first.mask(5))


def test_survives_pickling():
    sequence = synthetic_sequence(2)
    copy = pickle.loads(pickle.dumps(sequence))
    assert np.array_equal(copy.frame(1), sequence.frame(1))


def test_sets_of_different_seed_have_nothing_in_common():
    names = [[s.name for s in synthetic_sequences(10, seed)] for seed in range(3)]
    assert len({name for one in names for name in one}) == 30


def test_frames_change_with_time(sequences):
    for sequence in sequences[:4]:
        first, later = (sequence.frame(t).astype(int) for t in (0, 15))
        assert np.abs(first - later).mean() > 2
        assert first.std() > 10


def test_first_frame_shows_all_of_the_object(sequences):
    for sequence in sequences:
        mask = sequence.mask(0)
        assert mask.mean() > 0.01
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not border.any()


def test_nothing_hides_the_object_in_the_first_frame():
    crowded = SceneOptions(distractors=(6, 6), length=2)
    lonely = SceneOptions(distractors=(0, 0), length=2)
    for seed in range(12):
        masks = [synthetic_sequence(seed, o).read_mask(0) for o in (crowded, lonely)]
        assert np.array_equal(*masks)


def test_boxes_hold_the_masks(sequences):
    for sequence in sequences[:6]:
        for t in np.flatnonzero(sequence.present)[::7]:
            rbbox, points = sequence.boxes[t], np.argwhere(sequence.mask(t))[:, ::-1]
            cos, sin = math.cos(rbbox[4]), math.sin(rbbox[4])
            inside = np.abs((points - rbbox[:2]) @ np.array([[cos, -sin], [sin, cos]]))
            assert (inside <= rbbox[2:4] / 2 + 0.51).all()


def test_a_box_that_never_moves_scores_little(sequences):
    scores = [np.nanmean(rotated_iou(s.boxes[:1], s.boxes[1:])) for s in sequences]
    assert 0.15 < np.mean(scores) < 0.4


def test_motion_varies_as_the_prior_does(sequences):
    motions = [
        prior.sequence_motion(s.boxes, *s.size, 1, "continuous", "object") for s in sequences
    ]
    # Between the 5th and 95th percentile, where a normal variable spans 3.29 standard deviations:
    # a few large motions, of an object half hidden, would swamp the standard deviation itself.
    low, high = np.quantile(np.concatenate(motions), [0.05, 0.95], axis=0)
    ratio = (high - low) / 3.29 / prior.named("davis16").standard_deviations
    assert (ratio > 0.3).all()
    assert (ratio < 2.0).all()


def test_objects_are_seldom_hidden(sequences):
    assert np.mean([s.present.mean() for s in sequences]) > 0.95


def test_distractors_are_counted():
    none = synthetic_sequence(3, SceneOptions(distractors=(0, 0), length=2))
    many = synthetic_sequence(3, SceneOptions(distractors=(4, 4), length=2))
    assert np.array_equal(none.mask(0), many.mask(0))
    changed = (none.frame(0) != many.frame(0)).any(axis=-1)
    assert changed.mean() > 0.02
    assert not changed[none.mask(0)].all()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (192, 64), (90, 160)])
def test_other_sizes(width, height):
    options = SceneOptions(width=width, height=height, length=3)
    for sequence in synthetic_sequences(3, options=options):
        assert sequence.size == (width, height)
        assert sequence.mask(0).mean() > 0.01
        assert sequence.frame(2).shape == (height, width, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 32},
        {"width": 640, "height": 120},
        {"length": 0},
        {"distractors": (3, 1)},
        {"distractors": (-1, 1)},
    ],
)
def test_refuses_bad_options(wrong):
    with pytest.raises(UserError) as caught:
        SceneOptions(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["paper", "nonesuch"])
def test_refuses_unfit_priors(name):
    with pytest.raises(UserError, match=name):
        synthetic_sequence(0, SceneOptions(prior=name))


def test_refuses_bad_seeds_and_counts():
    with pytest.raises(UserError, match="negative"):
        synthetic_sequence(-1)
    with pytest.raises(UserError, match="1 to 1,000,000"):
        synthetic_sequences(0)


def still_actor(family: str, seed: int) -> TexturedSprite:
    """An object at rest in the middle of a 240×240 frame, about 100 pixels large."""
    generator = np.random.default_rng(seed)
    outline = silhouette(generator, family)
    natural = outline.rbbox[2:4]
    size = 100 * natural / math.sqrt(natural.prod())
    rbboxes = np.array([[120.0, 120.0, *size, generator.uniform(0, math.pi)]])
    skin = textures.texture(generator, 32, 32, 8.0, textures.palette(generator))
    return TexturedSprite(outline, (skin, skin), rbboxes, np.zeros(1), (0.5, 0.0), 0.0)


def covered(sprite: TexturedSprite) -> np.ndarray:
    rows, columns, coverage = sprite.cover(0, 240, 240)
    mask = np.zeros((240, 240), np.uint8)
    mask[rows, columns] = coverage[..., 0]
    return mask


@pytest.mark.parametrize("family", FAMILIES)
def test_outline_at_rest_fills_its_box(family):
    for seed in range(5):
        sprite = still_actor(family, seed)
        rbbox = sprite.rbboxes[0]
        rows, columns = np.nonzero(covered(sprite) > 127)
        cos, sin = math.cos(rbbox[4]), math.sin(rbbox[4])
        points = np.stack([columns, rows], axis=-1) - rbbox[:2]
        unit = points @ np.array([[cos, -sin], [sin, cos]])
        # All four sides of the intended box are touched, to a pixel (two where a tip is sharp).
        assert unit.max(axis=0) == pytest.approx(rbbox[2:4] / 2, abs=2.0)
        assert unit.min(axis=0) == pytest.approx(-rbbox[2:4] / 2, abs=2.0)
        area = geometry.from_mask(covered(sprite) > 127)[2:4].prod()
        assert area == pytest.approx(rbbox[2:4].prod(), rel=0.06)


def test_painted_alpha_is_the_coverage():
    for family in FAMILIES:
        sprite = still_actor(family, 9)
        layer = sprite.paint(0, 240, 240)
        alpha = np.zeros((240, 240), np.float32)
        alpha[layer.rows, layer.columns] = layer.picture[..., 3]
        assert np.allclose(255 * alpha, covered(sprite), atol=0.01)
        assert (layer.picture[..., :3][layer.picture[..., 3] == 0] == 0).all()


def test_outline_out_of_the_frame_covers_nothing():
    sprite = still_actor("blob", 1)
    sprite.rbboxes[0, 0] = -500
    assert sprite.cover(0, 240, 240) is None
    assert sprite.paint(0, 240, 240) is None


def test_motion_blur_smears_along_the_way():
    still = still_actor("vehicle", 4)
    rbboxes = still.rbboxes + np.array([[-20, 0, 0, 0, 0], [0] * 5, [20, 0, 0, 0, 0]])
    moving = TexturedSprite(still.outline, still.skins, rbboxes, np.zeros(3), still.light, 0.9)
    alpha = moving.paint(1, 240, 240).picture[..., 3]
    sharp = still.paint(0, 240, 240).picture[..., 3]
    assert alpha.sum() == pytest.approx(sharp.sum(), rel=0.01)
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 2 * ((sharp > 0.05) & (sharp < 0.95)).sum()


@pytest.mark.parametrize("family", ["quadruped", "biped", "bird"])
def test_limbs_swing(family):
    outline = silhouette(np.random.default_rng(0), family)
    rest, moved = outline.outline(0.0), outline.outline(1.5)
    shifts = [np.abs(a[1][0] - b[1][0]).max() for a, b in zip(rest, moved, strict=True)]
    assert max(shifts) > 0.05


def test_texture_shapes():
    generator = np.random.default_rng(0)
    colours = textures.palette(generator)
    assert colours.shape == (4, 3)
    for _ in range(20):
        painted = textures.texture(generator, 40, 60, 10.0, colours)
        assert painted.shape == (40, 60, 3)
        assert painted.dtype == np.uint8
    field = textures.noise(generator, 40, 60, 10.0)
    assert field.min() == 0
    assert field.max() == pytest.approx(1, abs=1e-3)
