import os
import re
import shutil
import sys
import zlib

import numpy as np
import pytest
from folders import HEIGHT, NAMES, WIDTH, mask_image, object_mask, write_davis, write_split
from numpy.testing import assert_allclose
from PIL import Image

from bmvtrack.data import sources
from bmvtrack.data.davis import load_davis16, read_mask
from bmvtrack.data.sequence import read_image
from bmvtrack.errors import UserError


def frame_paths(resolution, names, frames=3):
    return [
        f"/JPEGImages/{resolution}/{n}/{t:05}.jpg /Annotations/{resolution}/{n}/{t:05}.png"
        for n in names
        for t in range(frames)
    ]


@pytest.mark.parametrize("resolution", ["480p", "360p", "1080p"])
def test_sequences_have_frames_masks_and_boxes(tmp_path, resolution):
    sequences = load_davis16(write_davis(tmp_path, resolution))
    assert [s.name for s in sequences] == list(NAMES)
    sequence = sequences[1]
    assert len(sequence) == 3
    assert sequence.size == (WIDTH, HEIGHT)
    assert sequence.frame(2).shape == (HEIGHT, WIDTH, 3)
    assert sequence.frame(2).dtype == np.uint8
    assert_allclose(sequence.frame(2)[0, 0], [200, 40, 0], atol=4)  # RGB
    for t in range(3):
        assert (sequence.mask(t) == object_mask(t)).all()
    assert_allclose(sequence.boxes[:, :2], [[20.5 + 3 * t, 14.5] for t in range(3)])
    assert_allclose(np.sort(sequence.boxes[:, 2:4]), [[9, 17]] * 3, atol=1e-4)


def test_480p_is_preferred(tmp_path):
    write_davis(tmp_path, "1080p", names=["other"])
    write_davis(tmp_path, "480p")
    assert [s.name for s in load_davis16(tmp_path)] == list(NAMES)


@pytest.mark.parametrize(
    ("resolution", "folder", "split", "lines"),
    [
        ("480p", "480p", "val", frame_paths("480p", ["dog", "bear"])),
        ("360p", "360p", "train", frame_paths("360p", ["dog", "bear"])),
        ("480p", "2016", "val", ["dog", "bear"]),
        ("480p", "2016", "trainval", ["bear", "", "dog  "]),
    ],
)
def test_a_split_is_read_from_pairs_of_paths_or_from_names(
    tmp_path, resolution, folder, split, lines
):
    write_davis(tmp_path, resolution)
    write_split(tmp_path, folder, split, lines)
    assert [s.name for s in load_davis16(tmp_path, split)] == ["bear", "dog"]
    assert [s.name for s in load_davis16(tmp_path, split, ["dog"])] == ["dog"]


@pytest.mark.parametrize("kind", ["0/255", "0/1", "palette", "LA", "RGB", "RGBA", "1"])
def test_a_mask_is_the_same_in_any_image_mode(tmp_path, kind):
    mask_image(object_mask(1), kind).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == bool
    assert (mask == object_mask(1)).all()


@pytest.mark.parametrize("kind", ["0/255", "palette", "LA", "RGB"])
def test_an_empty_mask_has_no_object_and_no_box(tmp_path, kind):
    write_davis(tmp_path, names=["bear"])
    empty = mask_image(np.zeros((HEIGHT, WIDTH), dtype=bool), kind)
    empty.save(tmp_path / "Annotations" / "480p" / "bear" / "00001.png")
    (sequence,) = load_davis16(tmp_path)
    assert sequence.present.tolist() == [True, False, True]
    assert np.isnan(sequence.boxes[1]).all()


def test_a_smoothed_border_is_cut_at_half(tmp_path):
    Image.fromarray(np.array([[0, 100, 128, 255]], dtype=np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]]


def test_a_palette_mask_keeps_every_object(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, True, True]]


def test_a_sequence_in_memory_is_the_same(tmp_path):
    (sequence,) = load_davis16(write_davis(tmp_path / "davis", names=["bear"]))
    frame, boxes = sequence.frame(1), sequence.boxes
    kept = sequence.in_memory()
    shutil.rmtree(tmp_path / "davis")
    assert (len(kept), kept.size) == (3, (WIDTH, HEIGHT))
    assert (kept.frame(1) == frame).all()
    assert (kept.mask(2) == object_mask(2)).all()
    assert (kept.boxes == boxes).all()
    assert (kept.opencv_boxes == sequence.opencv_boxes).all()


def read_everything(root):
    for sequence in load_davis16(root):
        sequence.in_memory()


FRAME = "JPEGImages/480p/camel/00001.jpg"
MASK = "Annotations/480p/camel/00001.png"
DAMAGE = {
    "mask missing": (lambda root: (root / MASK).unlink(), MASK),
    "masks missing": (
        lambda root: shutil.rmtree(root / "Annotations"),
        "Annotations/480p/bear/00000.png",
    ),
    "mask cut off": (lambda root: (root / MASK).write_bytes((root / MASK).read_bytes()[:60]), MASK),
    "mask not an image": (lambda root: (root / MASK).write_text("no image"), MASK),
    "image not an image": (lambda root: (root / FRAME).write_text("no image"), FRAME),
    "frames missing": (
        lambda root: [p.unlink() for p in (root / FRAME).parent.iterdir()],
        "JPEGImages/480p/camel",
    ),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_missing_or_damaged_is_named(tmp_path, damage, named):
    damage(write_davis(tmp_path))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / named))):
        read_everything(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path):
    path = write_davis(tmp_path) / "Annotations" / "480p" / "camel" / "00001.png"
    Image.new("L", (32, 18)).save(path)
    with pytest.raises(UserError, match=r"'camel', frame 1: the mask is 32×18 .* is 64×36"):
        read_everything(tmp_path)


def test_a_missing_or_foreign_root_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "nowhere"))):
        load_davis16(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} is not a DAVIS folder"):
        load_davis16(tmp_path)


def test_unknown_splits_and_sequences_are_named(tmp_path):
    write_davis(tmp_path)
    write_split(tmp_path, "2016", "val", ["bear", "zebra"])
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "ImageSets/480p/test.txt"))):
        load_davis16(tmp_path, "test")
    with pytest.raises(UserError, match=r"JPEGImages/480p lacks .*'val': zebra"):
        load_davis16(tmp_path, "val")
    with pytest.raises(UserError, match="no sequence yak in"):
        load_davis16(tmp_path, sequences=["bear", "yak"])


def test_real_folders_are_read_whole(shared_data):
    dev = load_davis16(shared_data / "davis16-dev", "val")
    assert len(dev) == 10
    assert sum(map(len, dev)) == 678
    assert {s.size for s in dev} == {(854, 480)}
    train = load_davis16(shared_data / "davis16-train-360p", "train")
    assert len(train) == 30
    assert sum(map(len, train)) == 2079
    without = {"bmx-bumps": 14, "surf": 1}
    absent = {s.name: int((~s.present).sum()) for s in train if s.name in without}
    assert absent == without


def test_hidden_files_are_nobodys_data(tmp_path):
    """Of macOS (`._00000.jpg`) and of Jupyter (`.ipynb_checkpoints`)."""
    write_davis(tmp_path)
    before = load_davis16(tmp_path)
    images = next((tmp_path / "JPEGImages").iterdir())
    (images / ".ipynb_checkpoints").mkdir()
    (images.parent / ".hidden").mkdir()
    for folder in (path for path in images.iterdir() if not path.name.startswith(".")):
        (folder / "._00000.jpg").write_bytes(b"not an image")
    after = load_davis16(tmp_path)
    assert [(s.name, len(s)) for s in after] == [(s.name, len(s)) for s in before]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    write_davis(tmp_path, names=["dog"], frames=12)
    for folder in ("JPEGImages", "Annotations"):
        for path in (tmp_path / folder / "480p" / "dog").iterdir():
            path.rename(path.with_stem(str(int(path.stem))))  # 0, 1, 10, 11, 2, …
    (sequence,) = load_davis16(tmp_path)
    assert (np.diff(sequence.boxes[:, 0]) == 3).all()


@pytest.mark.parametrize(
    "lines", [["\ufeffown dog"], frame_paths("480p", ["own dog"]), ["own dog/00000.jpg"]]
)
def test_a_split_may_name_a_sequence_with_a_space(tmp_path, lines):
    write_davis(tmp_path, names=["own", "own dog"])
    write_split(tmp_path, "480p", "val", lines)
    assert [sequence.name for sequence in load_davis16(tmp_path, "val")] == ["own dog"]


def test_a_split_of_nothing_is_named(tmp_path):
    write_davis(tmp_path)
    write_split(tmp_path, "480p", "val", [])
    with pytest.raises(UserError, match=r"480p/val\.txt names no sequence"):
        load_davis16(tmp_path, "val")


def test_a_split_that_is_no_text_is_named(tmp_path):
    write_davis(tmp_path)
    write_split(tmp_path, "480p", "val", ["bear"])
    (tmp_path / "ImageSets" / "480p" / "val.txt").write_bytes(b"b\xe4r\n")
    with pytest.raises(UserError, match=r"val\.txt: it is missing or not UTF-8 text"):
        load_davis16(tmp_path, "val")


def test_object_numbers_in_grey_are_all_object(tmp_path):
    numbers = np.zeros((8, 8), np.uint8)
    numbers[2, 2:5], numbers[5, 5:7] = 1, 3
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == (numbers > 0)).all()


def test_frames_and_masks_obey_the_same_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    mask = object_mask(1)
    Image.fromarray(np.stack([mask * np.uint8(255)] * 3, axis=-1)).save(
        tmp_path / "frame.jpg", exif=exif, quality=100
    )
    Image.fromarray(mask * np.uint8(255)).save(tmp_path / "mask.png", exif=exif)
    turned = read_mask(tmp_path / "mask.png")
    assert turned.shape == (WIDTH, HEIGHT)
    assert ((read_image(tmp_path / "frame.jpg")[..., 0] > 127) == turned).mean() > 0.98


def test_an_image_that_tells_absurd_sizes_is_damaged(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("L", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    for read, what in ((read_image, "image"), (read_mask, "mask")):
        with pytest.raises(UserError, match=f"cannot read the {what} .*huge.png"):
            read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_of_images_need_not_be_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 4), (7, 8, 9)).save(str(tmp_path / "plain.png"))
    (tmp_path / "plain.png").rename(path)
    assert (read_image(path) == (7, 8, 9)).all()


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    write_davis(tmp_path / "a:b", names=["dog"])
    write_split(tmp_path / "a:b", "480p", "val", ["dog"])
    for source in (f"davis16:{tmp_path}/a:b", f"davis16:{tmp_path}/a:b:val"):
        assert [sequence.name for sequence in sources.load_sequences(source)] == ["dog"]
    with pytest.raises(UserError, match="synthetic sequences have no folder"):
        sources.parse("synthetic:5")


@pytest.mark.parametrize(
    "line", ["bear", "bear 82", "bear/00000", "/Annotations/480p/bear/00000.PNG x"]
)
def test_splits_in_any_form_name_their_sequences(tmp_path, line):
    write_davis(tmp_path)
    write_split(tmp_path, "480p", "val", [line])
    assert [sequence.name for sequence in load_davis16(tmp_path, "val")] == ["bear"]


def test_smoothed_borders_of_masks_from_0_to_1_are_understood(tmp_path):
    values = np.zeros((8, 8), np.float32)
    values[2:6, 2:6], values[6, 2:6] = 1, 0.2
    Image.fromarray(values).save(tmp_path / "mask.tif")
    assert read_mask(tmp_path / "mask.tif").sum() == 16


@pytest.mark.parametrize("data", [b"MM\0*", b"abc"])
def test_a_damaged_orientation_is_none(tmp_path, data):
    Image.fromarray(object_mask(0)).save(tmp_path / "mask.png", exif=b"Exif\0\0" + data)
    assert (read_mask(tmp_path / "mask.png") == object_mask(0)).all()
