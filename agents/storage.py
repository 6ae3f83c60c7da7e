"""Saving and loading of agents: actors as safetensors and JSON, training states without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from stable_baselines3 import SAC
from stable_baselines3.sac.policies import Actor
from torch import nn

from agents.policy import Inputs, LatentPriorActor, StateExtractor
from agents.replay import TensorReplayBuffer
from bmvtrack.errors import UserError
from bmvtrack.files import write_bytes, write_json
from bmvtrack.motion import Coordinates
from envs.state import action_space, observation_space

PolicyName = Literal["latent-prior", "diagonal-prior", "plain"]
ACTORS: dict[PolicyName, Callable[..., Actor]] = {
    "latent-prior": LatentPriorActor,
    "diagonal-prior": partial(LatentPriorActor, correlated=False),
    "plain": Actor,
}


@dataclass(frozen=True)
class StoredActor:
    """A loaded actor.

    Attributes:
        actor: the actor, in evaluation mode.
        coordinates: coordinates of its actions.
    """

    actor: Actor
    coordinates: Coordinates


def save_actor(actor: Actor, policy: PolicyName, coordinates: Coordinates, folder: Path) -> None:
    """Write ``agent.safetensors`` and ``agent.json`` to ``folder``, each atomically.

    Args:
        actor: actor of a trained agent.
        policy: its key in :data:`ACTORS`.
        coordinates: coordinates of its actions.
        folder: folder to write to; created if missing, and other files in it (an encoder's) are left alone.
    """
    config = {
        "policy": policy,
        "coordinates": coordinates,
        "features": _feature_count(actor),
        "net_arch": actor.net_arch,
        "inputs": _inputs(actor),
    }
    tensors = {
        name: value.detach().cpu().half().contiguous() for name, value in actor.state_dict().items()
    }
    write_bytes(folder / "agent.safetensors", save(tensors))
    write_json(folder / "agent.json", config)


def load_actor(folder: Path) -> StoredActor:
    """Load an actor written by :func:`save_actor`.

    Raises:
        UserError: if a file is missing or damaged, or the two do not match.
    """
    config_path, weights_path = folder / "agent.json", folder / "agent.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(
                f"no agent in {folder}: {path.name} is missing; train one with scripts/train_sac.py"
            )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        actor = make_actor(
            config["policy"],
            config["coordinates"],
            config["features"],
            config["net_arch"],
            config["inputs"],
        )
        coordinates: Coordinates = config["coordinates"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config_path} does not describe an agent: {error!r}") from error
    try:
        actor.load_state_dict(load_file(weights_path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{weights_path} does not fit {config_path}: {reason}") from error
    actor.set_training_mode(False)
    return StoredActor(actor, coordinates)


def make_actor(
    policy: PolicyName,
    coordinates: Coordinates,
    features: int,
    net_arch: list[int],
    inputs: Inputs = "moments",
) -> Actor:
    """Create an untrained actor; that of ``latent-prior`` is the prior itself.

    Args:
        policy: a key of :data:`ACTORS`.
        coordinates: coordinates of its actions.
        features: F, the encoder's number of features.
        net_arch: sizes of the hidden layers.
        inputs: see :class:`~agents.policy.StateExtractor`.
    """
    observations = observation_space(features)
    extractor = StateExtractor(observations, inputs)
    return ACTORS[policy](
        observations,
        action_space(coordinates),
        net_arch=net_arch,
        features_extractor=extractor,
        features_dim=extractor.features_dim,
    )


def training_state(model: SAC) -> dict[str, Any]:
    """Parameters, optimisers, temperature, replay buffer and counters as tensors and numbers."""
    return {
        "parameters": model.get_parameters(),
        "log_ent_coef": None if model.log_ent_coef is None else model.log_ent_coef.detach(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "replay": _replay(model).state(),
    }


def restore_training_state(model: SAC, state: dict[str, Any]) -> None:
    """The inverse of :func:`training_state`.

    Raises:
        UserError: if the state belongs to another policy, network or buffer.
    """
    try:
        model.set_parameters(state["parameters"], exact_match=True, device=model.device)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint belongs to another policy or encoder: {reason}") from error
    if model.log_ent_coef is not None and state["log_ent_coef"] is not None:
        with torch.no_grad():
            model.log_ent_coef.copy_(state["log_ent_coef"])
    model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
    _replay(model).load_state(state["replay"])


def _replay(model: SAC) -> TensorReplayBuffer:
    assert isinstance(model.replay_buffer, TensorReplayBuffer)
    return model.replay_buffer


def _feature_count(actor: nn.Module) -> int:
    space = actor.observation_space
    assert isinstance(space, spaces.Dict)
    shape = space["features"].shape
    assert shape is not None
    return shape[0]


def _inputs(actor: Actor) -> Inputs:
    extractor = actor.features_extractor
    assert isinstance(extractor, StateExtractor)
    return extractor.inputs
