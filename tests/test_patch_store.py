"""The store of patches: what is in it, what breaks it, and the script that makes it."""

import dataclasses
import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import write_youtube_vos
from hypothesis import given
from hypothesis import strategies as st
from patch_stores import SIZE, clip, make, small_youtube_vos

from bmvtrack.data import preparation
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.bank import build_bank
from bmvtrack.data.patch_sampler import PatchSampler
from bmvtrack.data.patch_store import PatchStore, shard_path
from bmvtrack.data.preparation import held_out, prepare
from bmvtrack.data.samples import Sampler
from bmvtrack.data.youtube_vos import load_youtube_vos, single_object_sequences
from bmvtrack.errors import UserError
from bmvtrack.files import held


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_youtube_vos(tmp_path_factory.mktemp("youtube-vos"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(preparation, "CLIPS_PER_SHARD", 2)


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "CLIPS_PER_SHARD", 2)
        return make(data, tmp_path_factory.mktemp("stores") / "store")


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_frame_of_every_kept_object_has_a_row(data, store):
    expected = [
        (clip.name, number, path.stem)
        for clip in data.clips
        for number in single_object_sequences(clip)[0]
        for path in clip.frames
    ]
    table = store.table
    rows = zip(table.video.tolist(), table.object_id.tolist(), table.frame.tolist(), strict=True)
    assert list(rows) == expected
    assert len(store) == 8 * 3
    assert sorted(set(table.shard.tolist())) == [0, 1, 2]
    names = [store.categories[c - 1] for c in table.category]
    meta = {c.name: c.categories for c in data.clips}
    assert names == [meta[video][number] for video, number, _ in expected]
    assert store.categories == ("ape", "bee", "cat", "dog")
    assert store.classes == 5
    assert store.nbytes == 24 * (SIZE * SIZE * 3 + SIZE * SIZE // 8)


def test_patches_are_what_the_sampler_of_frames_cuts_out(data, store):
    """The same crop as paper mode's, but for rounding to whole grey levels."""
    sequences = [s for c in data.clips for s in single_object_sequences(c)[0].values()]
    *_, bank = build_bank(sequences, 90)
    everything = torch.arange(len(bank))
    frames = Sampler(bank, everything, SIZE, 3, "paper", Augmentation(), augment=False)
    stored = PatchSampler(store, "train", SIZE, torch.device("cpu"), True, None)
    seen = frames.draw(150, torch.Generator().manual_seed(0))
    batch = stored.draw(40, torch.Generator().manual_seed(0))
    twins = (seen.boxes[None] - batch.boxes[:, None]).abs().amax(dim=-1) < 1e-9
    assert twins.any(dim=1).all()
    twin = twins.byte().argmax(dim=1)
    torch.testing.assert_close(batch.patches, seen.patches[twin], atol=0.51 / 63.75, rtol=0)
    assert torch.equal((batch.labels > 0).long(), seen.labels[twin])
    torch.testing.assert_close(batch.motion, seen.motion[twin], atol=1e-6, rtol=0)


def test_a_patch_can_be_looked_at(store):
    for index in (0, 5, 23):
        image, mask = store.patch(index)
        records = np.load(shard_path(store.folder, store.table.shard[index]))
        record = records[store.table.row[index]]
        np.testing.assert_array_equal(image, record["patch"])
        np.testing.assert_array_equal(mask, np.unpackbits(record["mask"], axis=-1).astype(bool))
        assert mask[SIZE // 2, SIZE // 2]
        assert not mask[0].any()


def test_no_video_is_on_both_sides(store):
    videos = {
        split: set(store.table.video[store.indices(split)]) for split in ("train", "validation")
    }
    assert not videos["train"] & videos["validation"]
    assert [len(videos[split]) for split in ("train", "validation")] == [3, 2]


def test_the_papers_split_is_by_sequence(data, tmp_path):
    store = make(data, tmp_path / "store", split_by="sequence", validation_share=0.5)
    parts = [set(store.table.sequence[store.indices(s)]) for s in ("train", "validation")]
    assert [len(part) for part in parts] == [4, 4]
    assert not parts[0] & parts[1]
    videos = [{name.split("/")[0] for name in part} for part in parts]
    assert videos[0] & videos[1]


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=2).filter(lambda g: len(set(g)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_a_split_is_of_groups_and_seeded(groups, share, seed):
    groups = np.array(groups)
    validation = held_out(groups, share, seed)
    inside, outside = set(groups[validation]), set(groups[~validation])
    assert not inside & outside
    assert inside
    assert outside
    assert abs(len(inside) - share * len(inside | outside)) <= 1
    np.testing.assert_array_equal(held_out(groups, share, seed), validation)
    order = np.random.default_rng(0).permutation(len(groups))
    np.testing.assert_array_equal(held_out(groups[order], share, seed), validation[order])


def test_seeds_differ():
    groups = np.array([f"{i}" for i in range(50)])
    splits = {held_out(groups, 0.2, seed).tobytes() for seed in range(5)}
    assert len(splits) == 5


def test_class_agnostic_makes_all_one_class_without_new_patches(data, tmp_path, monkeypatch):
    make(data, tmp_path / "store")
    monkeypatch.setattr(preparation, "_make_shard", None)
    store = make(data, tmp_path / "store", categories=())
    assert store.classes == 2
    assert set(store.table.category.tolist()) == {1}


def test_without_meta_there_is_one_class(data, tmp_path):
    clips = tuple(dataclasses.replace(clip, categories=None) for clip in data.clips[:2])
    store = make(dataclasses.replace(data, clips=clips, categories=()), tmp_path / "store")
    assert store.classes == 2
    assert set(store.table.category.tolist()) == {1}


def test_processes_make_the_same_store(data, store, tmp_path):
    make(data, tmp_path / "store", workers=2)
    assert files(tmp_path / "store") == files(store.folder)


def test_a_killed_preparation_goes_on(data, store, tmp_path, monkeypatch):
    out, made = tmp_path / "store", []
    real = preparation._make_shard

    def killed(job):
        if job.number == 1 and not made.count(1):
            made.append(1)
            (job.path.parent / ".00001-abc.npy").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        made.append(job.number)
        return real(job)

    monkeypatch.setattr(preparation, "_make_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        make(data, out)
    with pytest.raises(UserError, match=r"store is not a finished store of patches: it has no"):
        PatchStore(out)
    make(data, out)
    assert made == [0, 1, 1, 2]
    assert files(out) == files(store.folder)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 16
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink])
def test_only_a_damaged_shard_is_remade(data, store, tmp_path, monkeypatch, damage, suffix):
    out, made = tmp_path / "store", []
    make(data, out)
    damage(shard_path(out, 1).with_suffix(suffix))
    real = preparation._make_shard
    monkeypatch.setattr(
        preparation, "_make_shard", lambda job: made.append(job.number) or real(job)
    )
    make(data, out)
    assert made == [1]
    assert files(out) == files(store.folder)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("shards/00001.npy", truncated, r"00001.npy is missing or damaged; run .* again"),
        ("shards/00001.npy", Path.unlink, r"00001.npy is missing or damaged; run .* again"),
        ("index.npz", flipped, r"index.npz is missing, damaged or from another preparation; run"),
        ("index.npz", Path.unlink, r"index.npz is missing, damaged or from another preparation"),
        ("store.json", Path.unlink, r"is not a finished store of patches: it has no store.json"),
        ("store.json", lambda p: p.write_text("{}"), r"does not describe a store: 'format'; run"),
        (
            "store.json",
            lambda p: p.write_text('{"format": 9}'),
            r"is a store of format 9, .* reads format 2: run",
        ),
        ("store.json", lambda p: p.write_text('{"format": 2}'), r"not describe a store: 'size'"),
    ],
)
def test_a_store_that_is_not_whole_is_refused(data, tmp_path, name, damage, message):
    out = tmp_path / "store"
    make(data, out)
    damage(out / name)
    with pytest.raises(UserError, match=message):
        PatchStore(out)
    assert len(make(data, out)) == 24


def test_a_shard_that_is_no_array_is_named(data, tmp_path):
    store = make(data, tmp_path / "store")
    path = shard_path(store.folder, 0)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"00000.npy is damaged; run"):
        store.patch(0)


def test_another_preparation_is_not_overwritten(data, tmp_path):
    out = tmp_path / "store"
    make(data, out)
    before = files(out)
    for other, size in ((data, 128), (dataclasses.replace(data, clips=data.clips[:2]), SIZE)):
        with pytest.raises(UserError, match="was begun with another --size, other data"):
            prepare(other, out, size, 1)
    assert files(out) == before


def test_mistakes_are_named_before_anything_is_written(data, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for out, size, workers, message in (
        (tmp_path / "full", SIZE, 1, "full contains something else"),
        (tmp_path / "full" / "thesis.txt", SIZE, 1, "thesis.txt is a file"),
        (tmp_path / "new", 100, 1, "--size must be a multiple of 64, not 100"),
        (tmp_path / "new", SIZE, 0, "--workers must be at least 1, not 0"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(data, out, size, workers)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "thesis.txt"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device; the finished shards"),
        (BrokenProcessPool("terminated abruptly"), "a worker was killed.*fewer --workers"),
    ],
)
def test_what_stops_it_is_named_and_what_is_done_is_kept(
    data, tmp_path, monkeypatch, error, message
):
    made, real = [], preparation._make_shard

    def stopped(job):
        if made == [0]:
            made.append("stopped")
            raise error
        made.append(job.number)
        return real(job)

    monkeypatch.setattr(preparation, "_make_shard", stopped)
    with pytest.raises(UserError, match=message):
        make(data, tmp_path / "store")
    assert len(make(data, tmp_path / "store")) == 24
    assert made == [0, "stopped", 1, 2]


def test_nothing_kept_or_nothing_to_split_is_named(tmp_path):
    lost = [np.ones((30, 40), np.uint8)] * 2
    root = write_youtube_vos(tmp_path / "lost", {"a": lost, "b": lost})
    with pytest.raises(UserError, match="no object is left"):
        make(load_youtube_vos(root), tmp_path / "none")
    root = write_youtube_vos(tmp_path / "alone", {"a": clip(1), "b": [lost[0][:, :30]]})
    with pytest.raises(UserError, match="only a is kept, which cannot be split"):
        make(load_youtube_vos(root), tmp_path / "one")
    assert len(make(load_youtube_vos(root), tmp_path / "one", split_by="sequence")) == 6


def test_the_script_says_what_it_kept_and_dropped(tmp_path, run_script):
    clips = {f"c{number}": clip(number) for number in range(3)} | {"d": [clip(0)[1][:, 8:30]]}
    root = write_youtube_vos(tmp_path / "data", clips)
    out = tmp_path / "patches"
    _, printed, _ = run_script("prepare_youtube_vos.py", root, out, "--size", 64, "--workers", 1)
    words = [line.split() for line in printed.splitlines()]
    assert "no meta.json" in printed
    lines = [" ".join(line) for line in words]
    assert "absent in an annotated frame 1" in lines
    assert "w ≥ 0.7 W or h ≥ 0.7 H in a frame 1" in lines
    kept = [
        [int(w) for w in line[1:4]] for line in words if line[:1] in (["train"], ["validation"])
    ]
    assert np.sum(kept, axis=0).tolist() == [3, 5, 15]
    assert [row[0] for row in kept] == [2, 1]
    assert ["both", "3", "5", "15"] in [line[:4] for line in words]
    assert "1 of 4 videos keep no object" in printed
    assert f"written to {out}" in printed
    assert json.loads((out / "store.json").read_text())["split"]["by"] == "video"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "no folder nowhere"),
        (["nowhere", "out", "--validation-share", "1"], "--validation-share must lie in (0, 1)"),
        (["nowhere", "out", "--seed", "-1"], "--seed must not be negative"),
    ],
)
def test_the_scripts_mistakes_get_one_line(tmp_path, monkeypatch, run_script, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run_script("prepare_youtube_vos.py", *arguments)
    assert status == 2
    assert message in errors
    assert not list(tmp_path.iterdir())


def test_two_preparations_do_not_write_to_one_folder(tmp_path, run_script):
    root = write_youtube_vos(tmp_path / "data", {"a": clip(1), "b": clip(2)})
    out = tmp_path / "patches"
    command = ("prepare_youtube_vos.py", root, out, "--size", 64, "--workers", 1)
    with held(out):
        status, _, errors = run_script(*command)
    assert status == 2
    assert f"another process is writing to {out}" in errors
    assert run_script(*command)[0] == 0
    _, _, errors = run_script("prepare_youtube_vos.py", root, out / "store.json")
    assert "store.json is a file; give a folder" in errors


def test_a_damaged_annotation_can_be_replaced_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "CLIPS_PER_SHARD", 2)
    small, out = small_youtube_vos(tmp_path / "data"), tmp_path / "store"
    path = small.clips[2].annotations[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(UserError, match="cannot read the annotation"):
        make(small, out)
    path.write_bytes(whole)
    made = []
    real = preparation._make_shard
    monkeypatch.setattr(
        preparation, "_make_shard", lambda job: made.append(job.number) or real(job)
    )
    make(small, out)
    assert made == [1, 2]
    before = files(out)
    path.write_bytes(small.clips[2].annotations[1].read_bytes() + b"more")  # of a finished store
    make(small, out)
    assert made == [1, 2, 1]
    changed = {name for name, content in files(out).items() if content != before[name]}
    assert {"shards/00001.npy", "shards/00001.npz"} <= {str(name) for name in changed}
    assert not any("shards/00000" in str(name) for name in changed)


def test_a_store_of_another_format_is_not_mended(data, tmp_path):
    store = make(data, tmp_path / "store")
    description = store.folder / "store.json"
    description.write_text(description.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(UserError, match=r"of format 1, .* to a new folder"):
        PatchStore(store.folder)


def test_what_a_file_browser_leaves_is_nobodys_data(data, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".DS_Store").write_bytes(b"1")
    assert len(make(data, tmp_path / "store"))


def test_a_damaged_note_of_a_preparation_is_one_of_another(data, tmp_path):
    prepare(data, tmp_path / "store", SIZE, 1)
    (tmp_path / "store" / "preparation.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="was begun with another --size, other data"):
        prepare(data, tmp_path / "store", SIZE, 1)


def test_other_categories_are_other_data(data, tmp_path):
    """A shard holds the numbers of classes: they follow from a clip's categories, and from all."""
    prepare(data, tmp_path / "store", SIZE, 1)
    first, *rest = data.clips
    swapped = dataclasses.replace(first, categories={1: "ape", 2: "dog"})
    for other in (
        dataclasses.replace(data, clips=(swapped, *rest)),
        dataclasses.replace(data, categories=("ant", *data.categories)),
    ):
        with pytest.raises(UserError, match="was begun with another --size, other data"):
            prepare(other, tmp_path / "store", SIZE, 1)
