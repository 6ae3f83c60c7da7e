"""Templates: what a network keeps of the frame that showed the object, and who hands it on."""

import dataclasses

import numpy as np
import pytest
import torch
from banks import SIZE, build, draw, mask, sequence, several, video
from environments import follow, of_three_sizes
from network_tests import NetworkTests

from bmvtrack import prior
from bmvtrack.data import samples
from bmvtrack.data.augmentation import Augmentation, with_others
from bmvtrack.data.samples import Sampler
from bmvtrack.errors import UserError
from bmvtrack.models import BetaMVAE, ResNetUNet, Template
from bmvtrack.models.template import Recall
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.training.options import PretrainOptions
from bmvtrack.training.parts import build_network
from envs import BMVTrackEnv, BMVTrackVectorEnv

DAVIS = prior.named("davis16")


@pytest.fixture
def options(tmp_path) -> PretrainOptions:
    return PretrainOptions(out=tmp_path / "run", width=4, input_size=64, samples=6).resolved()


@pytest.fixture(scope="module")
def clips():
    return of_three_sizes()


def speak(network):
    """Let the parts that read templates add something, as they do once they are trained."""
    generator = torch.Generator().manual_seed(9)
    for recall in network.recalls:
        weight = recall.output.weight
        weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    return network


@pytest.fixture(scope="module")
def reading() -> Perception:
    torch.manual_seed(0)
    return Perception(speak(ResNetUNet(DAVIS, width=8, input_size=64, template=True)))


class TestResNetUNetThatReadsTemplates(NetworkTests):
    architecture = ResNetUNet
    small = {"width": 4, "input_size": 64, "template": True}  # noqa: RUF012
    shapes = ({}, {"width": 8, "input_size": 128, "input_channels": 3})
    # Not widened: it is refused, see below.
    test_widened_it_computes_the_same = None
    test_copies_of_a_channel_learn_different_things = None

    def make(self, seed=0, **changes):
        return speak(super().make(seed, **changes))

    def test_a_patch_is_its_own_template_if_there_is_no_other(self):
        network = self.make().eval()
        x, other = self.patches(network), self.patches(network, seed=2)
        alone = network(x).logits
        for template in (x, network.memorize(x)):
            torch.testing.assert_close(network(x, template=template).logits, alone)
        assert (network(x, template=other).logits - alone).abs().max() > 1e-3

    def test_gradients_reach_what_memorizes(self):
        network = self.make()
        x = self.patches(network).requires_grad_()
        other = self.patches(network, seed=2).requires_grad_()
        network(x, template=other).logits.square().mean().backward()
        assert other.grad.abs().sum() > 0
        for recall in network.recalls:
            assert all((p.grad != 0).any() for p in recall.parameters())


def test_before_training_a_template_changes_nothing():
    torch.manual_seed(0)
    plain = ResNetUNet(DAVIS, width=4, input_size=64).eval()
    torch.manual_seed(0)
    reader = ResNetUNet(DAVIS, width=4, input_size=64, template=True).eval()
    x, other = torch.randn(2, 2, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(reader(x, template=other).logits, plain(x).logits)


def test_a_network_without_a_template_says_so():
    network = BetaMVAE(DAVIS, width=4, input_size=64)
    x = torch.zeros(1, network.input_channels, 64, 64)
    with pytest.raises(ValueError, match="BetaMVAE does not use a template"):
        network(x, template=x)
    plain = ResNetUNet(DAVIS, width=4, input_size=64)
    with pytest.raises(ValueError, match="does not use a template"):
        plain.encode_with_template(torch.zeros(1, 4, 64, 64), Template(()))


def test_recall_reads_by_cosine_similarity():
    torch.manual_seed(0)
    recall = Recall(6)
    torch.nn.init.normal_(recall.output.weight)
    maps, shown = torch.randn(2, 6, 3, 2), torch.randn(2, 6, 4, 5)
    result = recall(maps, recall.memorize(shown)).detach().double().numpy()

    def linear(layer, column):
        return (
            layer.weight.detach().double().numpy()[..., 0, 0] @ column + layer.bias.detach().numpy()
        )

    for b, row, column in np.ndindex(2, 3, 2):
        here = maps[b, :, row, column].double().numpy()
        there = shown[b].flatten(1).double().numpy().T  # (20, 6)
        query = linear(recall.query, here)
        keys = [linear(recall.key, x) for x in there]
        cosines = np.array([query @ k / np.linalg.norm(query) / np.linalg.norm(k) for k in keys])
        weights = np.exp(10 * cosines) / np.exp(10 * cosines).sum()
        read = sum(w * linear(recall.value, x) for w, x in zip(weights, there, strict=True))
        expected = here + linear(recall.output, np.append(read, cosines.max()))
        np.testing.assert_allclose(result[b, :, row, column], expected, atol=1e-4)


@pytest.mark.parametrize("scores", [1, 50, 400, 2000])
def test_a_recall_without_gradients_reads_in_parts_what_it_reads_at_once(monkeypatch, scores):
    monkeypatch.setattr("bmvtrack.models.template._SCORES_AT_ONCE", scores)
    torch.manual_seed(0)
    recall = Recall(6)
    torch.nn.init.normal_(recall.output.weight)
    maps, memory = torch.randn(5, 6, 4, 3), recall.memorize(torch.randn(5, 6, 4, 5))
    at_once = recall(maps, memory)
    assert at_once.requires_grad
    with torch.inference_mode():
        in_parts = recall(maps, memory)
    torch.testing.assert_close(in_parts, at_once.detach(), atol=1e-5, rtol=1e-5)


def test_rows_of_templates_are_taken_replaced_and_joined(reading):
    x = torch.randn(5, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        template, other = reading.network.memorize(x[:3]), reading.network.memorize(x[3:])
    joined = Template.cat([template, other])
    assert [len(t) for t in (template, other, joined)] == [3, 2, 5]
    taken = joined.rows(torch.tensor([4, 0]))
    replaced = template.with_rows(torch.tensor([2, 0]), other)
    for memory, first, second, third in zip(
        joined.memories, taken.memories, replaced.memories, template.memories, strict=True
    ):
        for all_, some, new, old in zip(memory, first, second, third, strict=True):
            assert torch.equal(some, all_[[4, 0]])
            assert torch.equal(new, all_[[4, 1, 3]])
            assert torch.equal(old, all_[:3])  # as it was


def test_weights_without_a_template_are_a_start_for_one(options, tmp_path):
    first = build_network(options)
    first.save_weights(tmp_path / "weights", half=False)
    reader = dataclasses.replace(options, template=True, start_from=tmp_path / "weights")
    second = build_network(reader)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    x = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(second.eval()(x, template=x.flip(0)).logits, first.eval()(x).logits)
    second.save_weights(tmp_path / "reader")
    with pytest.raises(UserError, match="of another network"):  # what it reads would be lost
        build_network(dataclasses.replace(options, start_from=tmp_path / "reader"))
    wider = dataclasses.replace(reader, width=2 * options.width, start_from=tmp_path / "reader")
    with pytest.raises(UserError, match=r"of another network: .*recalls"):
        build_network(wider)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"template": True, "mode": "paper"}, "--template is for --mode tracking"),
        ({"template": True, "architecture": "beta-mvae"}, "--architecture resnet-unet"),
        ({"distractors": 0.7, "backgrounds": 0.6}, "together at most 1, not 0.7 and 0.6"),
        ({"distractors": -0.1}, "not be negative"),
        ({"mode": "paper", "backgrounds": 0.1}, "are for --mode tracking"),
    ],
)
def test_options_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        PretrainOptions(**wrong).resolved()


def sampler(bank, jitter, augment=False):
    targets = torch.arange(len(bank))
    return Sampler(bank, targets, SIZE, 4, "tracking", jitter, augment, templates=True)


def test_bank_knows_which_targets_show_one_object():
    empty = np.zeros((40, 60), bool)
    masks = [mask((5, 5, 20, 20)), empty, mask((8, 5, 23, 20))]
    bank = build(several(), sequence(masks))
    count = len(bank) - 2
    assert bank.shown.tolist() == [[i, 1] for i in range(count)] + [[count, 2]] * 2


def test_a_template_shows_the_same_object_through_its_true_box():
    still = Augmentation(template=0, strengths=(1.0,))
    bank = build(several())
    batch = draw(sampler(bank, still), 24)
    unshaken = Augmentation(log_scale=0, turn=0, shift=0)
    unmoved = draw(sampler(bank, unshaken), 24)
    assert (batch.patches[:, 3:] - batch.template[:, 3:]).abs().max() > 0.1
    torch.testing.assert_close(unmoved.template, unmoved.patches, atol=1e-4, rtol=0)
    assert batch.template.shape == batch.patches.shape


def test_a_template_of_a_video_is_any_of_its_frames():
    bank = build(video())
    source = Sampler(
        bank,
        torch.tensor([1]),
        SIZE,
        4,
        "tracking",
        Augmentation(template=0),
        False,
        templates=True,
    )
    batch = draw(source, 64)
    views = {t[3].round().sum().item() for t in batch.template}  # of the filled box
    assert len(views) >= 3


def test_what_is_put_behind_an_object_leaves_it_alone():
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(6, 3, 32, 32, generator=generator)
    masks = torch.zeros(6, 1, 32, 32)
    masks[:, :, 10:20, 8:24] = 1
    chance = torch.rand(4, 6, generator=generator)
    chosen = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
    jitter = Augmentation(distractors=0.4, backgrounds=0.4)
    result = with_others(images, masks, chosen, chance, jitter)
    changed = (result != images).any(dim=1)
    assert not (changed & (masks[:, 0] > 0)).any()
    share = changed.float().mean(dim=(1, 2)).tolist()
    outside = 1 - 10 * 16 / 32**2
    assert all(0 < s < 0.8 * outside for s in share[:2])  # a thing
    assert share[2:4] == pytest.approx([outside] * 2)  # everything
    assert share[4:] == [0, 0]
    assert result.min() >= 0
    assert result.max() <= 255


def test_one_environment_and_many_read_the_same_template(clips, reading):
    arguments = {"sequences": clips, "weights": reading, "clip_length": 4, "lost_after": 3}
    rng = np.random.default_rng(0)
    ends, _ = follow(BMVTrackEnv(**arguments), BMVTrackVectorEnv(3, **arguments), rng, 16, i=1)
    assert ends > 2


def test_an_environment_looks_for_what_its_clip_began_with(clips, reading):
    arguments = {"sequences": clips, "clip_length": 4}
    told = BMVTrackEnv(weights=reading, **arguments)
    observation, _ = told.reset(seed=0)
    percept = reading.look(told.sequence.frame(told.frame_index + 1), told.rbbox)
    assert not np.allclose(observation["mask_geometry"], percept.geometry[0].numpy(), atol=1e-4)
    template = reading.remember(told.sequence.frame(told.frame_index), told.rbbox)
    percept = reading.look(told.sequence.frame(told.frame_index + 1), told.rbbox, template)
    np.testing.assert_allclose(observation["mask_geometry"], percept.geometry[0].numpy(), atol=1e-4)


def test_each_object_of_a_video_has_its_template(clips, reading):
    video_ = clips[0]
    boxes = {1: video_.boxes[0], 7: video_.boxes[0] * [0.8, 0.9, 1.2, 0.8, 1.0]}
    together = Tracker(reading)
    alone = {i: Tracker(reading) for i in boxes}
    for i, box in boxes.items():
        together.init(video_.frame(0), box, i)
        alone[i].init(video_.frame(0), box)
    for t in range(1, 4):
        results = together.update_all(video_.frame(t))
        for i, tracker in alone.items():
            np.testing.assert_allclose(
                results[i].rbbox, tracker.update(video_.frame(t)).rbbox, rtol=1e-3, atol=1e-2
            )


def test_a_background_has_no_border_of_its_own():
    """However far it is shifted, all of it is picture."""
    images, masks = torch.full((4, 3, 32, 32), 200.0), torch.zeros(4, 1, 32, 32)
    chance = torch.tensor([[0.2] * 4, [0.5] * 4, [0.0, 0, 1, 1], [0.0, 1, 0, 1]])
    result = with_others(images, masks, torch.full((4,), 0.5), chance, Augmentation(backgrounds=1))
    torch.testing.assert_close(result, images)


def test_an_object_is_not_put_behind_itself_as_another(monkeypatch):
    """Of one video, whatever would be put behind an object is that object."""
    crowded = []
    behind = Sampler._augmented
    monkeypatch.setattr(
        Sampler, "_augmented", lambda s, v, c, g: crowded.append(c) or behind(s, v, c, g)
    )
    for bank, expected in ((build(video()), 0), (build(video(), several(), several()), 1)):
        targets = torch.arange(len(bank))
        draw(Sampler(bank, targets, SIZE, 4, "tracking", Augmentation(distractors=1)), 64)
        assert crowded.pop().any() == expected


def test_what_stands_behind_an_object_stands_behind_its_template(monkeypatch):
    chosen = []

    def noted(images, masks, which, *rest):
        chosen.append(which)
        return images

    monkeypatch.setattr(samples, "with_others", noted)
    draw(sampler(build(several(), video()), Augmentation(distractors=0.5), augment=True), 16)
    assert len(chosen) == 2
    assert torch.equal(*chosen)
    assert chosen[0].unique().numel() > 2


def test_a_template_is_seen_through_a_box_that_is_not_quite_right():
    bank = build(several())
    exact, shaken = (draw(sampler(bank, Augmentation(template=t)), 24) for t in (0, 0.3))
    assert torch.equal(exact.boxes, shaken.boxes)
    assert (exact.template != shaken.template).flatten(1).any(dim=1).all()
