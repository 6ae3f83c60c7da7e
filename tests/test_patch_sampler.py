"""Batches drawn from a store of patches, and pretraining on them."""

import dataclasses

import numpy as np
import pytest
import torch
from patch_stores import SIZE, make, small_youtube_vos
from runs import killed_at

from bmvtrack.data import preparation, sources
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.patch_sampler import (
    PatchSampler,
    ResidentRecords,
    StreamedRecords,
    store_samplers,
)
from bmvtrack.data.patch_store import PatchStore
from bmvtrack.errors import UserError
from bmvtrack.models import load_network
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.checkpoint import load_checkpoint
from bmvtrack.training.pretrain import PretrainRun

CPU = torch.device("cpu")
USUAL = Augmentation()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_youtube_vos(tmp_path_factory.mktemp("youtube-vos"))


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "CLIPS_PER_SHARD", 2)
        return make(data, tmp_path_factory.mktemp("stores") / "store")


def sampler(store, resident=False, split="train", size=SIZE, jitter=USUAL, device=CPU):
    return PatchSampler(store, split, size, device, resident, jitter)


def assert_same(first, second):
    assert first.template is second.template is None
    for name in ("patches", "labels", "boxes", "motion"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu()), name


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_streamed_batches_are_those_of_the_resident_store(store):
    resident, streamed = sampler(store, True), sampler(store)
    first, second = generator(), generator()
    for count in (4, 4, 4, 4, 7, 7, 7, 2):
        assert_same(resident.draw(count, first), streamed.draw(count, second))
        assert torch.equal(first.get_state(), second.get_state())
    assert streamed.records.hits == 3  # from the third of a kind on


def test_a_restored_run_goes_on_with_the_same_batches(store):
    straight, stopped = sampler(store), sampler(store)
    first, second = generator(), generator()
    batches = [straight.draw(5, first) for _ in range(8)]
    for expected in batches[:4]:
        assert_same(stopped.draw(5, second), expected)
    state = second.get_state()
    stopped.draw(5, second)  # after the checkpoint, lost
    for again in (stopped, sampler(store)):
        restored = torch.Generator()
        restored.set_state(state)
        for expected in batches[4:]:
            assert_same(again.draw(5, restored), expected)
    assert straight.records.hits == 6


def test_whoever_else_draws_from_the_generator_only_costs_the_reading_ahead(store):
    resident, streamed = sampler(store, True), sampler(store)
    first, second = generator(), generator()
    for disturbed in (False, False, False, True, True, True, False, False, False):
        assert_same(resident.draw(6, first), streamed.draw(6, second))
        if disturbed:
            assert torch.equal(*(torch.rand(3, generator=g) for g in (first, second)))
    assert streamed.records.hits == 3  # draws 3, 4 and the last


def test_nothing_is_read_ahead_for_needs_that_cannot_be_foreseen(store, monkeypatch):
    own, read = PatchStore(store.folder), []  # what another test still reads ahead is not ours
    monkeypatch.setattr(own, "read", lambda indices, out: read.append(len(indices)))
    streamed, chance = sampler(own), generator()
    for _ in range(6):
        streamed.draw(6, chance)
        torch.rand(1, generator=chance)
    assert read == [6] * 6


def test_records_come_from_threads_in_order(store):
    indices = store.indices("train")
    streamed, resident = (kind(store, indices, CPU) for kind in (StreamedRecords, ResidentRecords))
    choices = [torch.randint(len(indices), (9,), generator=generator(i)) for i in range(40)]
    for i, choice in enumerate(choices):
        assert torch.equal(streamed.get(choice), resident.get(choice))
        streamed.expect(choices[i + 1 : i + 3])
    assert streamed.hits == 38


def test_labels_are_the_class_where_the_object_is(store):
    batch = sampler(store, jitter=None).draw(60, generator())
    train = store.indices("train")
    for i in range(60):
        twin = train[np.abs(store.table.rbbox[train] - batch.boxes[i].numpy()).max(axis=1) < 1e-9]
        image, mask = store.patch(twin[0])
        expected = mask * np.int64(store.table.category[twin[0]])
        np.testing.assert_array_equal(batch.labels[i], expected)
        np.testing.assert_allclose(
            batch.patches[i].permute(1, 2, 0) * 63.75 + 127.5, image, atol=1e-4
        )
    assert batch.labels.dtype == torch.int64
    assert len(batch.labels.unique()) > 2
    assert torch.equal(batch.motion, torch.tensor([1.0, 1, 0, 0, 0]).expand(60, 5))


def test_every_patch_of_its_side_is_drawn_and_no_other(store):
    for split in ("train", "validation"):
        side = sampler(store, split=split)
        drawn = side.draw(400, generator()).boxes
        wanted = torch.from_numpy(store.table.rbbox[store.indices(split)])
        assert torch.equal(drawn.unique(dim=0), wanted.unique(dim=0))


def test_half_are_mirrored_and_colours_change(store):
    plain, augmented = (
        sampler(store, jitter=jitter).draw(200, generator()) for jitter in (None, Augmentation())
    )
    same = (plain.labels == augmented.labels).all(dim=2).all(dim=1)
    mirrored = (plain.labels == augmented.labels.flip(-1)).all(dim=2).all(dim=1)
    assert (same | mirrored).all()
    assert 70 < (mirrored & ~same).sum() < 130
    shift = augmented.patches.mean(dim=(1, 2, 3)) - plain.patches.mean(dim=(1, 2, 3))
    assert shift.std() > 0.05


def test_patches_are_averaged_down(data, tmp_path):
    store = make(data, tmp_path / "store", size=128)
    large, small = (
        sampler(store, size=size, jitter=None).draw(6, generator()) for size in (128, 64)
    )
    expected = large.patches.reshape(6, 3, 64, 2, 64, 2).mean(dim=(3, 5))
    torch.testing.assert_close(small.patches, expected, atol=1e-5, rtol=0)
    share = (large.labels > 0).float().reshape(6, 64, 2, 64, 2).mean(dim=(2, 4))
    assert torch.equal(small.labels > 0, share > 0.5)
    with pytest.raises(UserError, match="--input-size 192 does not divide the 128 pixels"):
        sampler(store, size=192)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [False, True])
def test_the_gpu_streams_through_pinned_memory(store, resident):
    device = torch.device("cuda")
    ours, chance = sampler(store, resident, device=device), torch.Generator(device).manual_seed(0)
    reference, twin = sampler(store, True, device=device), torch.Generator(device).manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [(ours.draw(6, chance), reference.draw(6, twin)) for _ in range(6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for pair in batches:
        assert_same(*pair)
        assert pair[0].patches.is_cuda
    if not resident:
        assert ours.records.hits == 4


def test_a_store_up_to_the_limit_is_resident(store):
    for limit, kind in (
        (store.nbytes, ResidentRecords),
        (store.nbytes - 1, StreamedRecords),
        (None, StreamedRecords),
    ):
        pair = store_samplers(store, SIZE, CPU, limit)
        assert all(type(each.records) is kind for each in pair)
        assert [each.augmentation is None for each in pair] == [False, True]


@pytest.fixture
def options(store, tmp_path):
    return PretrainOptions(
        out=tmp_path / "run",
        data=(f"youtube-vos:{store.folder}",),
        mode="paper",
        width=4,
        input_size=64,
        samples=10,
        steps=4,
        batch_size=4,
        validate_every=2,
        device="cpu",
    )


def test_pretraining_learns_the_categories_and_resumes(options, store, tmp_path):
    straight = dataclasses.replace(options, out=tmp_path / "straight", resident_gigabytes=1)
    pretrain(straight)
    assert load_network(straight.out / "last").classes == store.classes
    with killed_at(3):
        pretrain(options)
    pretrain(dataclasses.replace(options, resume=True))
    states = [load_checkpoint(out / "checkpoints") for out in (options.out, straight.out)]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name


def test_training_reads_ahead(options):
    run = PretrainRun(options.resolved())
    for _ in range(4):
        run.training_step()
    (streamed,) = run.train_sampler.samplers
    assert streamed.records.hits == 2


def test_what_a_store_cannot_do_is_named(options, store, data, tmp_path):
    source = options.data[0]
    with pytest.raises(UserError, match="--mode tracking needs what lies around them"):
        pretrain(dataclasses.replace(options, mode="tracking"))
    with pytest.raises(UserError, match=r"differ in their number of classes .*: 5, synthetic: 2"):
        pretrain(dataclasses.replace(options, data=(source, "synthetic")))
    with pytest.raises(UserError, match=r"not sequences; use it with pretrain_vae.py --mode paper"):
        sources.load_sequences(source)
    with pytest.raises(UserError, match="--resident-gigabytes must not be negative"):
        pretrain(dataclasses.replace(options, resident_gigabytes=-1))
    with pytest.raises(UserError, match="is not a finished store"):
        pretrain(dataclasses.replace(options, data=(f"youtube-vos:{tmp_path}",)))
    assert not options.out.exists()


def test_class_agnostic_patches_mix_with_other_data(options, data, tmp_path):
    make(data, tmp_path / "store", categories=())
    mixed = (f"youtube-vos:{tmp_path / 'store'}", "synthetic")
    metrics = pretrain(
        dataclasses.replace(options, data=mixed, synthetic_count=2, longest_side=64, steps=1)
    )
    assert np.isfinite(metrics["loss"])
    assert load_network(options.out / "last").classes == 2
