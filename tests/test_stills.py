import re

import numpy as np
import pytest
from PIL import Image

from bmvtrack.data.stills import LAYOUTS, count_without_mask, load_stills
from bmvtrack.errors import UserError

MASK = np.zeros((20, 30), dtype=bool)
MASK[5:12, 8:24] = True


def write_stills(root, image_folder, mask_folder, names=("b", "a", "c")):
    for folder in (image_folder, mask_folder):
        (root / folder).mkdir()
    for name in names:
        Image.new("RGB", (30, 20), (10, 200, 30)).save(root / image_folder / f"{name}.jpg")
        Image.fromarray(MASK.astype(np.uint8) * 255).save(root / mask_folder / f"{name}.png")
    return root


@pytest.mark.parametrize("layout", LAYOUTS, ids="+".join)
def test_every_image_with_a_mask_is_a_sequence_of_one_frame(tmp_path, layout):
    write_stills(tmp_path, *layout)
    (tmp_path / layout[1] / "b.png").unlink()
    stills = load_stills(tmp_path)
    assert [s.name for s in stills] == ["a", "c"]
    assert count_without_mask(tmp_path) == 1
    assert [len(s) for s in stills] == [1, 1]
    assert stills[0].size == (30, 20)
    assert (stills[0].mask(0) == MASK).all()
    np.testing.assert_allclose(stills[0].boxes[0, :2], [15.5, 8])


def test_images_are_found_by_any_spelling_of_their_suffix(tmp_path):
    write_stills(tmp_path, "images", "masks")
    (tmp_path / "images" / "b.jpg").rename(tmp_path / "images" / "b.JPG")
    (tmp_path / "images" / "c.jpg").rename(tmp_path / "images" / "c.jpeg")
    assert [still.name for still in load_stills(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((), "no known layout"),
        (("images",), "no known layout"),
        (
            ("images", "masks"),
            r"no \.jpg or \.jpeg in .*images has a \.png with the same name in .*masks",
        ),
    ],
)
def test_a_folder_without_pairs_is_named(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_stills(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "nowhere"))):
        load_stills(tmp_path / "nowhere")


@pytest.mark.parametrize(("folder", "name"), [("images", "a.jpg"), ("masks", "a.png")])
def test_a_damaged_file_is_named(tmp_path, folder, name):
    path = write_stills(tmp_path, "images", "masks", "a") / folder / name
    path.write_bytes(b"not an image")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_stills(tmp_path)[0].in_memory()


@pytest.mark.parametrize(("folder", "count"), [("duts-tr-256", 9000), ("ecssd-200", 200)])
def test_real_folders_are_read(shared_data, folder, count):
    stills = load_stills(shared_data / folder)
    assert len(stills) == count
    for still in stills[:: count // 20]:
        assert still.mask(0).shape == still.frame(0).shape[:2]
        assert still.present.all()
