"""What runs on a GPU keeps to its device, and waits for it only where it must: on a fake one.

That results are right there as well, only a real one can show (the tests marked ``gpu``).
"""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from fake_gpu import GPU, FakeGPU
from lightning.fabric import Fabric
from rectangles import write_rectangles

from agents.options import TrainOptions
from agents.training import make_environments, make_model
from bmvtrack import prior
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.devices import to_device
from bmvtrack.models import ResNetUNet
from bmvtrack.percept import Percept
from bmvtrack.perception import Perception, _together
from bmvtrack.training import PretrainOptions
from bmvtrack.training.pretrain import PretrainRun
from envs import BMVTrackVectorEnv


@pytest.fixture
def gpu():
    return FakeGPU()


@pytest.fixture(scope="module")
def sequences():
    options = SceneOptions(width=96, height=72, length=9)
    return [sequence.in_memory() for sequence in synthetic_sequences(2, 5, options)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


def test_a_fake_gpu_minds_what_a_real_one_would(gpu):
    there = gpu.move({"numbers": torch.ones(3)})["numbers"]
    here = gpu.mode.from_tensor(torch.ones(3))
    with gpu.running(), pytest.raises(RuntimeError, match=r"same device|different devices"):
        there + here
    with gpu.running(), pytest.raises(Exception, match="_local_scalar"):
        float(there.sum())
    with gpu.running(), pytest.raises(AssertionError, match="the host asks"):
        there.cpu()


@pytest.mark.parametrize("inference", [False, True])
def test_a_fake_gpu_sees_copies_that_are_waited_for(gpu, inference):
    here = gpu.mode.from_tensor(torch.ones(3))
    with torch.inference_mode(inference), gpu.running():
        assert to_device(here, GPU).device.type == "cuda"
        with pytest.raises(AssertionError, match="copies between cpu and cuda"):
            here.to(GPU)


TEMPLATE = {"template": True, "distractors": 0.2, "backgrounds": 0.2, "whole_images": 0.5}


@pytest.mark.parametrize(
    "special",
    [
        {"mode": "paper"},
        {"mode": "paper", "architecture": "beta-mvunet"},
        {"mode": "paper", "architecture": "beta-mvae", "reparameterization": "full"},
        {"mode": "paper", "bottleneck": "iaf"},
        {"mode": "tracking", "class_weights": "balanced", "own_boxes": 0.5},
        {"mode": "tracking", **TEMPLATE, "shares": (2, 1)},  # three of four samples: one by lot
    ],
    ids=lambda special: "-".join(map(str, special.values())),
)
def test_a_training_step_does_not_wait(gpu, data, tmp_path, special):
    small = {"width": 4, "input_size": 64, "samples": 10, "steps": 10, "batch_size": 4}
    options = PretrainOptions(out=tmp_path, data=data, validation_share=0.3, device="cpu")
    run = PretrainRun(replace(options, **small, **special).resolved())
    fabric = run.fabric
    del run.fabric
    gpu.move(run)
    run.fabric = fabric
    before = [parameter.device for parameter in run.network.parameters()]
    with (
        patch.object(Fabric, "device", GPU),
        patch.object(fabric, "backward", lambda loss: gradients_of(run.network)),
        patch("bmvtrack.data.samples.host_seed", lambda generator: 0),
        gpu.running(),
    ):
        terms = run.training_step()
    assert {*before, *(term.device for term in terms.values())} == {torch.device("cuda:0")}


def gradients_of(network):
    """In the place of a backward pass."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)


LEARNS = (
    *("policy", "actor", "critic", "critic_target"),
    *("replay_buffer", "log_ent_coef", "ent_coef_optimizer"),
)


@pytest.mark.parametrize(
    "special",
    [{}, {"actor_hidden": (16,), "inputs": "all"}, {"policy": "diagonal-prior"}],
    ids=["mask-head", "network-head", "diagonal"],
)
def test_an_update_of_the_agent_does_not_wait(gpu, sequences, perception, tmp_path, special):
    options = TrainOptions(
        out=tmp_path, environments=4, learning_starts=16, batch_size=8, buffer_size=100, **special
    )
    model = make_model(options, make_environments(options, perception, sequences), "cpu")
    model.learn(24)
    for name, value in gpu.move({name: getattr(model, name) for name in LEARNS}).items():
        setattr(model, name, value)
    vars(model.replay_buffer)["device"] = GPU  # its tensors are there already
    with (
        patch("torch.autograd.grad", lambda loss, at: [torch.zeros_like(p) for p in at]),
        gpu.running(),
    ):
        batch = model.replay_buffer.sample(8)
        report = model.update(batch)
        model._update_target()
    assert {value.device for value in report.values()} == {torch.device("cuda:0")}


@pytest.mark.parametrize(
    ("coordinates", "reward"), [("object", "rotated"), ("frame", "axis_aligned")]
)
def test_environments_step_on_the_gpu(gpu, sequences, monkeypatch, coordinates, reward):
    """Each step reads the ends of episodes, and what OpenCV finds boxes of masks from."""
    monkeypatch.setattr("bmvtrack.perception._LAUNCHED_WHOLE", 0)  # a fake GPU has no graphs
    torch.manual_seed(0)
    network = ResNetUNet(prior.named("davis16"), width=4, input_size=64, template=True)
    env = BMVTrackVectorEnv(
        3,
        sequences,
        Perception(network),
        coordinates=coordinates,
        reward=reward,
        clip_length=2,  # the second step starts new clips
    )
    env.reset(seed=0)
    gpu.move([env.perception, env.frames])
    env.perception.device = GPU
    counted, moved = ("_rows", "_steps", "_missed"), ("_sizes", "_truths", "_boxes", "_previous")
    for name in (*counted, *moved, "_at_rest"):
        setattr(env, name, gpu.move(getattr(env, name)))
    env._iou, env._template = gpu.move(env._iou), gpu.move(env._template)
    everything = torch.device("cuda:0")
    with gpu.running(may_read=True):
        actions = torch.zeros(3, 5, device=GPU)
        for step in range(2):
            gpu.reads.clear()
            observations, *numbers, info = env.step(actions)
            looks = 2 if "final_obs" in info else 1
            masks = [(3, 65, 64), (3, 4)] * looks  # and an empty row below each
            assert gpu.reads == [(2, 3), *masks, (3 * looks, 5)], f"in step {step}"
            assert {value.device for value in observations.values()} == {everything}
            assert {value.device for value in numbers} == {everything}
        assert env.true_motion().device == everything
    assert np.isin(info["sequence"], [sequence.name for sequence in sequences]).all()


@pytest.mark.parametrize("template", [False, True])
def test_a_few_looks_and_their_way_to_the_host_wait_once(gpu, sequences, monkeypatch, template):
    """Nothing that a CUDA graph may not hold, and one transfer in each direction that counts."""
    network = ResNetUNet(prior.named("davis16"), width=4, input_size=64, template=template)
    seer, frame, boxes = Perception(network), sequences[0].frame(0), sequences[0].boxes[:2]
    known = seer.remember(frame, boxes)
    frames, numbers = (gpu.mode.from_tensor(t) for t in _together(frame, boxes))
    gpu.move([seer, known])
    seer.device = GPU
    monkeypatch.setattr(Percept, "unpacked", lambda percept, host: host.numbers)
    with gpu.running(may_read=True):
        percept = seer._launch(frames, numbers, known)
        assert gpu.reads == []
        numbers = percept.cpu()
    (size,) = numbers.shape
    assert size == 2 * (8 * (5 + 25 + 4) + 4 * (seer.feature_count + 64**2 + 8))
    assert gpu.reads == [(size,)]
