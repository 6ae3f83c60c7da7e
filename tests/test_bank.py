"""What a bank makes of videos and stills."""

import numpy as np
import pytest
import torch
from banks import build, mask, sequence
from folders import write_davis, write_split, write_stills
from numpy.testing import assert_allclose

from bmvtrack import geometry
from bmvtrack.data import sources
from bmvtrack.data.bank import WHOLE
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError


def moving(frames=4, without=()):
    """A video of a rectangle that moves right, in the given frames not there."""
    return sequence(
        [mask() if t in without else mask((5 + 3 * t, 8, 21 + 3 * t, 19)) for t in range(frames)]
    )


def test_a_video_has_one_target_a_frame_linked_to_the_one_before():
    video = moving()
    bank = build(video, sequence([mask((30, 5, 50, 30))] * 2, "two"))
    assert len(bank) == 6
    assert bank.frame_index.tolist() == [0, 1, 2, 3, 4, 5]
    assert bank.object_id.tolist() == [WHOLE] * 6
    assert bank.previous.tolist() == [-1, 0, 1, 2, -1, 4]
    assert bank.group.tolist() == [0, 0, 0, 0, 1, 1]
    assert_allclose(bank.boxes[:4], video.boxes)
    assert bank.weights.unique().tolist() == [1.0]


def test_a_frame_without_object_breaks_the_link():
    bank = build(moving(6, without=(0, 3)))
    assert bank.frame_index.tolist() == [1, 2, 4, 5]
    assert bank.previous.tolist() == [-1, 0, -1, 2]
    assert len(bank.frames) == 6


def test_labels_of_linked_boxes_are_continuous():
    y, x = np.mgrid[:60, :60] - 30
    masks = []
    for angle in np.radians(np.arange(70, 115, 6)):  # through the jump of OpenCV's labels
        along, beside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        masks.append((np.abs(along) < 22) & (np.abs(beside) < 8))
    boxes = build(sequence(masks)).boxes.numpy()
    assert (np.abs(np.diff(boxes[:, 4])) < np.radians(10)).all()
    assert (np.abs(np.diff(np.log(boxes[:, 2]))) < 0.1).all()


def test_parts_of_a_still_are_targets_of_their_own():
    """Two large parts and a speck: the whole in 3 of 10 draws, one of the parts otherwise."""
    large, other, speck = (2, 3, 22, 23), (30, 5, 50, 19), (55, 35, 58, 38)
    whole = mask(large, other, speck)
    bank = build(sequence([whole]))
    assert bank.object_id.tolist() == [0, 1, 2]
    assert bank.frame_index.tolist() == [0, 0, 0]
    assert bank.previous.tolist() == [-1, -1, -1]
    assert_allclose(bank.weights, [0.3, 0.35, 0.35])
    objects = bank.objects[0].numpy()
    assert ((objects > 0) == whole).all()
    for number, part in ((1, large), (2, other)):
        assert ((objects == number) == mask(part)).all()
    for target, part in enumerate((mask(large, other, speck), mask(large), mask(other))):
        assert_allclose(bank.boxes[target], geometry.from_mask(part))


@pytest.mark.parametrize(
    "rectangles",
    [
        [(2, 3, 22, 23)],
        [(2, 3, 22, 23), (30, 5, 33, 8)],  # a speck
        [(2, 3, 42, 33), (45, 5, 55, 13)],  # 80 pixels, under a tenth of the largest
    ],
)
def test_a_still_of_one_object_has_one_target(rectangles):
    bank = build(sequence([mask(*rectangles)]))
    assert bank.object_id.tolist() == [WHOLE]
    assert bank.weights.tolist() == [1.0]
    assert_allclose(bank.boxes[0], geometry.from_mask(mask(*rectangles)))


def test_the_parts_of_a_video_are_one_target():
    bank = build(sequence([mask((2, 3, 22, 23), (30, 5, 50, 19))] * 2))
    assert bank.object_id.tolist() == [WHOLE, WHOLE]


def test_frames_of_different_size_share_a_canvas():
    first = sequence([mask((5, 5, 20, 20), width=60, height=40)], "a")
    second = sequence([mask((5, 5, 20, 20), width=30, height=70)], "b", colours=(1, 2, 3))
    bank = build(first, second)
    assert bank.frames.shape == (2, 70, 60, 3)
    assert bank.objects.shape == (2, 70, 60)
    assert bank.sizes.tolist() == [[60, 40], [30, 70]]
    assert_allclose(bank.means, [[10, 200, 90], [1, 2, 3]])
    assert (bank.frames[0, :40].numpy() == first.frame(0)).all()
    assert (bank.frames[1, :, :30].numpy() == second.frame(0)).all()
    assert bank.frames[0, 40:].max() == 0
    assert bank.frames[1, :, 30:].max() == 0
    assert bank.frames.dtype == bank.objects.dtype == torch.uint8


def test_large_frames_are_reduced_and_small_ones_left():
    large = sequence([mask((20, 40, 120, 100), width=240, height=160)], "a")
    small = sequence([mask((5, 5, 20, 20))], "b")
    bank = build(large, small, longest_side=80)
    assert bank.sizes.tolist() == [[80, 53], [60, 40]]
    # a third; pixel centres are whole numbers: x → (x + ½)/3 − ½
    assert_allclose(bank.boxes[0, :2], [(70 - 0.5 + 0.5) / 3 - 0.5, 70 / 3 - 0.5], atol=0.6)
    assert_allclose(np.sort(bank.boxes[0, 2:4]), [20, 33], atol=1.5)
    assert_allclose(bank.boxes[1], small.boxes[0])


def test_an_image_keeps_a_pixel_of_its_short_side():
    thin = sequence([mask((100, 1, 900, 5), width=4000, height=6)], "a")
    assert build(thin, longest_side=320).sizes.tolist() == [[320, 1]]


def test_a_split_has_no_sequence_in_both():
    bank = build(*(sequence([mask((5, 5, 20, 20))] * (i % 3 + 1), str(i)) for i in range(10)))
    train, validation = bank.split(0.3, 0, 10)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(bank)))
    groups = [set(bank.group[part].tolist()) for part in (train, validation)]
    assert not groups[0] & groups[1]
    assert len(groups[1]) == 3
    again, other = bank.split(0.3, 0, 10), bank.split(0.3, 1, 10)
    assert torch.equal(again[1], validation)
    assert not torch.equal(other[1], validation)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_both_sides_of_a_split_have_a_sequence(share):
    bank = build(*(sequence([mask((5, 5, 20, 20))], str(i)) for i in range(3)))
    assert min(len(part) for part in bank.split(share, 0, 3)) == 1


def test_which_sequences_are_held_out_depends_on_their_number_alone():
    """Not on whether an object is left in each of them."""
    sequences = [sequence([mask((5, 5, 20, 20))], str(i)) for i in range(10)]
    held_out = {int(build(*sequences).group[i]) for i in build(*sequences).split(0.4, 3, 10)[1]}
    for i in range(10):
        some = build(*sequences[:i], sequence([mask()], "empty"), *sequences[i + 1 :])
        left = {int(some.group[j]) for j in some.split(0.4, 3, 10)[1]}
        assert left == held_out - {i}


def test_a_side_without_an_object_is_refused():
    one = [sequence([mask((5, 5, 20, 20))], "a"), sequence([mask()], "b"), sequence([mask()], "c")]
    with pytest.raises(UserError, match=r"of 3 sequences 1 are held out .* another --split-seed"):
        build(*one).split(0.3, 0, 3)


def test_one_sequence_cannot_be_split():
    with pytest.raises(UserError, match="one sequence cannot be split"):
        build(moving()).split(0.5, 0, 1)


def test_data_without_objects_is_refused():
    with pytest.raises(UserError, match="no frame of the training data has an object"):
        build(sequence([mask(), mask()]))
    with pytest.raises(UserError, match="no frame of the training data has an object"):
        build()


def test_a_mask_of_another_size_is_refused():
    wrong = VideoSequence(
        "odd", 1, lambda t: np.zeros((40, 60, 3), np.uint8), lambda t: mask(width=50)
    )
    with pytest.raises(UserError, match=r"odd.*50×40.*60×40"):
        build(wrong)


def test_a_bank_counts_its_bytes_and_moves():
    bank = build(moving())
    assert bank.nbytes > 4 * 40 * 60 * 4
    assert bank.to("cpu").frames.device.type == "cpu"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("youtube", "unknown data 'youtube'.*synthetic, cutouts, davis16, stills, duts"),
        ("davis16", "needs a folder: davis16:FOLDER"),
        ("duts:", "needs a folder: duts:FOLDER"),
        ("davis16:nowhere", "nowhere"),
        ("stills:nowhere", "nowhere"),
    ],
)
def test_a_bad_source_is_named(source, message):
    with pytest.raises(UserError, match=message):
        sources.load_sequences(source)


def test_sources_lead_to_readers(tmp_path):
    assert len(sources.load_sequences("synthetic", synthetic_count=3)) == 3
    write_stills(tmp_path / "stills")
    assert len(sources.load_sequences(f"duts:{tmp_path / 'stills'}")) == 3
    root = write_davis(tmp_path / "davis")
    write_split(
        root, "480p", "val", ["/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png"]
    )
    assert len(sources.load_sequences(f"davis16:{root}")) == 3
    (bear,) = sources.load_sequences(f"davis16:{root}:val")
    assert len(sources.load_bank("davis16", [bear], 480)) == 3
