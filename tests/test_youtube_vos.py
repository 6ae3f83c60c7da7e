"""YouTube-VOS on disk: layout, categories, and which objects are kept."""

import cv2
import numpy as np
import pytest
from folders import write_annotation, write_youtube_vos
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bmvtrack.data.youtube_vos import load_youtube_vos, read_annotation, single_object_sequences
from bmvtrack.errors import UserError

HEIGHT, WIDTH = 30, 40


def numbers(**objects):
    """An annotation ``(H, W)`` of rectangles: ``_3=(left, top, right, bottom)`` is object 3."""
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, (left, top, right, bottom) in objects.items():
        result[top:bottom, left:right] = int(name[1:])
    return result


def kept_and_dropped(root):
    (clip,) = load_youtube_vos(root).clips
    return single_object_sequences(clip)


def test_each_object_is_a_binary_sequence(tmp_path):
    annotations = [numbers(_1=(2, 2, 12, 12), _4=(20 + t, 5, 30, 20)) for t in range(3)]
    root = write_youtube_vos(tmp_path, {"clip": annotations})
    kept, dropped = kept_and_dropped(root)
    assert list(kept) == [1, 4]
    assert not dropped
    for number, sequence in kept.items():
        assert sequence.name == f"clip/{number}"
        assert len(sequence) == 3
        for t, annotation in enumerate(annotations):
            np.testing.assert_array_equal(sequence.mask(t), annotation == number)
            path = root / "train" / "JPEGImages" / "clip" / f"{5 * t:05}.jpg"
            np.testing.assert_array_equal(sequence.frame(t), cv2.imread(str(path))[..., ::-1])


def test_the_folder_of_the_layout_itself_will_do(tmp_path):
    write_youtube_vos(tmp_path, {"b": [numbers()], "a": [numbers()] * 2})
    for root in (tmp_path, tmp_path / "train"):
        assert [(c.name, len(c)) for c in load_youtube_vos(root).clips] == [("a", 2), ("b", 1)]


def test_only_annotated_frames_count(tmp_path):
    root = write_youtube_vos(tmp_path, {"clip": [numbers(_1=(2, 2, 9, 9))] * 2})
    frames = root / "train" / "JPEGImages" / "clip"
    (frames / "00003.jpg").write_bytes((frames / "00000.jpg").read_bytes())
    kept, _ = kept_and_dropped(root)
    assert len(kept[1]) == 2


def test_an_object_absent_in_one_frame_is_dropped(tmp_path):
    both, one = numbers(_1=(2, 2, 9, 9), _2=(20, 2, 29, 9)), numbers(_2=(20, 2, 29, 9))
    kept, dropped = kept_and_dropped(write_youtube_vos(tmp_path, {"clip": [both, one, both]}))
    assert list(kept) == [2]
    assert dropped == {1: "absent"}


@pytest.mark.parametrize(
    ("box", "large"),
    [
        ((5, 5, 5 + 27, 10), False),
        ((5, 5, 5 + 28, 10), True),  # 28 = 0.7 · 40
        ((5, 5, 10, 5 + 20), False),
        ((5, 5, 10, 5 + 21), True),  # 21 = 0.7 · 30
    ],
)
def test_an_object_large_in_one_frame_is_dropped(tmp_path, box, large):
    annotations = [numbers(_2=(1, 1, 6, 6)), numbers(_2=box)]
    kept, dropped = kept_and_dropped(write_youtube_vos(tmp_path, {"clip": annotations}))
    assert dropped == ({2: "large"} if large else {})
    assert list(kept) == ([] if large else [2])


def test_a_slanted_object_is_measured_along_the_frame(tmp_path):
    """Along its own diagonal it is longer than 0.7 of the frame's width; that is not asked."""
    annotation = np.zeros((30, 40), np.uint8)
    cv2.line(annotation, (8, 7), (33, 25), 1)
    kept, _ = kept_and_dropped(write_youtube_vos(tmp_path, {"clip": [annotation]}))
    assert kept[1].boxes[0, 2:4].max() > 0.7 * 40


rectangles = st.tuples(
    st.integers(0, 39), st.integers(0, 29), st.integers(1, 40), st.integers(1, 30)
).map(lambda r: (r[0], r[1], min(r[0] + r[2], 40), min(r[1] + r[3], 30)))


@settings(max_examples=20)
@given(
    st.lists(st.dictionaries(st.sampled_from([1, 2, 3]), rectangles), min_size=1, max_size=3),
    st.sets(st.sampled_from([1, 2, 3])),
    st.booleans(),
)
def test_what_is_kept_by_the_definition(tmp_path_factory, frames, categorised, with_meta):
    root = tmp_path_factory.mktemp("clip")
    annotations = [numbers(**{f"_{k}": box for k, box in frame.items()}) for frame in frames]
    meta = {"clip": dict.fromkeys(categorised, "cat")} if with_meta else None
    kept, dropped = kept_and_dropped(write_youtube_vos(root, {"clip": annotations}, meta))
    seen = set().union(*(set(a.flat) for a in annotations)) - {0}
    assert kept.keys() | dropped.keys() == seen | (categorised if with_meta else set())
    assert not kept.keys() & dropped.keys()
    for number in seen:
        places = [np.nonzero(a == number) for a in annotations]
        present = all(len(rows) for rows, _ in places)
        small = present and all(
            np.ptp(columns) + 1 < 0.7 * WIDTH and np.ptp(rows) + 1 < 0.7 * HEIGHT
            for rows, columns in places
        )
        assert (number in kept) == (small and (number in categorised or not with_meta))


def test_categories_are_those_of_all_videos_sorted(tmp_path):
    box = {"_1": (2, 2, 9, 9), "_2": (20, 2, 29, 9), "_3": (2, 15, 9, 20)}
    meta = {
        "clip": {1: "zebra", 2: "ape", 7: "ape"},
        "not downloaded": {1: "dog"},
    }
    root = write_youtube_vos(
        tmp_path, {"clip": [numbers(**box)], "unnamed": [numbers(**box)]}, meta
    )
    data = load_youtube_vos(root)
    assert data.categories == ("ape", "dog", "zebra")
    kept, dropped = single_object_sequences(data.clips[0])
    assert list(kept) == [1, 2]
    assert dropped == {3: "no category", 7: "absent"}
    kept, dropped = single_object_sequences(data.clips[1])
    assert not kept
    assert set(dropped.values()) == {"no category"}


def test_without_meta_there_are_no_categories(tmp_path):
    data = load_youtube_vos(write_youtube_vos(tmp_path, {"clip": [numbers()]}))
    assert data.categories == ()
    assert data.clips[0].categories is None


@pytest.mark.parametrize("mode", ["P", "L"])
def test_an_annotation_holds_object_numbers(tmp_path, mode):
    annotation = numbers(_1=(2, 2, 9, 9), _4=(20, 2, 29, 9))
    write_annotation(tmp_path / "a.png", annotation, mode)
    np.testing.assert_array_equal(read_annotation(tmp_path / "a.png"), annotation)


def test_real_palettes(shared_data):
    data = load_youtube_vos(shared_data / "youtube-vos-3")
    assert [len(clip) for clip in data.clips] == [36, 30, 29]
    reasons = {clip.name: single_object_sequences(clip) for clip in data.clips}
    assert all(not kept for kept, _ in reasons.values())
    assert reasons["tNFaw9mv0_4"][1] == {1: "absent", 2: "large", 3: "absent", 4: "absent"}


def without(*parts):
    def damage(train):
        path = train.joinpath(*parts)
        if path.is_dir():
            path.rename(train.parent / "elsewhere")
        else:
            path.unlink()

    return damage


def with_meta(text):
    return lambda train: (train / "meta.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("Annotations"), "train is not a YouTube-VOS folder: it has no Annotations"),
        (without("JPEGImages"), "train is not a YouTube-VOS folder: it has no JPEGImages"),
        (without("Annotations", "clip"), "no clip in .*Annotations has annotations"),
        (without("JPEGImages", "clip", "00005.jpg"), r"'clip' lacks 1 of 2 .*clip/00005.jpg"),
        (with_meta("{"), "meta.json is not the meta.json of YouTube-VOS"),
        (with_meta("[]"), "meta.json is not the meta.json of YouTube-VOS"),
        (with_meta('{"videos": {"clip": {}}}'), "meta.json is not .*KeyError: 'objects'"),
        (with_meta('{"videos": {"clip": {"objects": {"one": {"category": "ape"}}}}}'), "meta.json"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, damage, message):
    root = write_youtube_vos(tmp_path / "data", {"clip": [numbers(_1=(2, 2, 9, 9))] * 2})
    damage(root / "train")
    with pytest.raises(UserError, match=message):
        load_youtube_vos(root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        load_youtube_vos(tmp_path / "nowhere")


def test_what_is_wrong_with_a_clip_is_named(tmp_path):
    small, large = numbers(_1=(2, 2, 9, 9)), np.ones((60, 80), np.uint8)
    folder = write_youtube_vos(tmp_path, {"clip": [small] * 2}) / "train" / "Annotations" / "clip"
    write_annotation(folder / "00005.png", large)
    with pytest.raises(UserError, match=r"annotations of clip 'clip' differ in size"):
        kept_and_dropped(tmp_path)
    write_annotation(folder / "00000.png", large)
    with pytest.raises(UserError, match=r"00000.jpg is 40×30 but the annotations .* 80×60"):
        kept_and_dropped(tmp_path)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "00000.png")
    with pytest.raises(UserError, match=r"00000.png has mode RGB; object numbers must be in a pal"):
        kept_and_dropped(tmp_path)
    path = folder / "00005.png"
    path.write_bytes(path.read_bytes()[:60])
    write_annotation(folder / "00000.png", small)
    with pytest.raises(UserError, match=r"cannot read the annotation .*00005.png"):
        kept_and_dropped(tmp_path)
