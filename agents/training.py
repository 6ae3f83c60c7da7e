"""Training an agent: options, environments, callbacks, and the call to ``learn``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.policy import StateExtractor
from agents.sac import LatentPriorSAC
from agents.storage import PolicyName, restore_training_state, save_actor, training_state
from bmvtrack.data import sources
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.errors import UserError
from bmvtrack.files import write_text
from bmvtrack.motion import Coordinates
from bmvtrack.perception import DEFAULT_WEIGHTS, Perception
from bmvtrack.training.checkpoint import refuse_existing_run, resumed_state, save_checkpoint
from envs.bmvtrack_env import BMVTrackEnv

_VALIDATION_SEED = 500  # away from the small seeds that encoders are trained with

_AT_LEAST_ONE = (
    "steps",
    "environments",
    "clip_length",
    "updates",
    "batch_size",
    "buffer_size",
    "validation_clips",
    "validate_every",
)


@dataclass(frozen=True)
class TrainOptions:
    """Train a soft actor-critic to track, starting from the encoder's own Gaussian."""

    out: Path = Path("runs/sac")
    """folder for checkpoints, TensorBoard logs, evaluations, and the agents `best` and `last`"""
    data: str = "synthetic"
    """synthetic (a new sequence for every clip), davis16:FOLDER or davis16:FOLDER:SPLIT"""
    weights: str = DEFAULT_WEIGHTS
    """encoder: name of bundled weights, or a folder that pretrain_vae.py wrote"""
    policy: PolicyName = "latent-prior"
    """`latent-prior`: full-covariance residual of the encoder's Gaussian, KL for entropy.
    `plain`: Stable-Baselines3's own SAC on the same states, for comparison"""
    coordinates: Coordinates = "object"
    """of the action: `object`, where the encoder's Gaussian is exact, or `frame` (the paper's G_t)"""
    reward: Literal["rotated", "axis_aligned"] = "rotated"
    """IoU of the rotated boxes, or of their axis-aligned bounds"""
    steps: int = 20_000
    """environment steps in all"""
    environments: int = 4
    """clips stepped side by side"""
    clip_length: int = 32
    """steps of an episode at most"""
    updates: int = 4
    """gradient steps after each step of all environments"""
    batch_size: int = 256
    """transitions in a gradient step"""
    learning_rate: float = 3e-4
    """of actor, critics and temperature"""
    gamma: float = 0.7
    """discount: drift costs later IoU, but not for ever"""
    target_kl: float = 2.5
    """nats the policy may spend on leaving the prior (`latent-prior` only): acting with half of the
    prior's noise takes 1.6 of them, a shift by one standard deviation takes half of one"""
    initial_temperature: float = 0.05
    """weight of KL (or of entropy, for `plain`) at the start; tuned from there"""
    buffer_size: int = 100_000
    """transitions kept for replay"""
    learning_starts: int = 500
    """steps before the first update"""
    hidden: tuple[int, ...] = (256, 256)
    """sizes of the hidden layers of actor and critics"""
    validation_share: float = 0.2
    """of the sequences of a folder, held out to choose the best agent"""
    validation_clips: int = 48
    """clips in an evaluation, the same ones each time"""
    validate_every: int = 2000
    """steps between evaluations; a checkpoint is written at each"""
    device: str = "auto"
    """of encoder and agent: `auto`, `cpu` or `cuda`"""
    seed: int = 0
    """of everything random"""
    max_minutes: float | None = None
    """stop after this time, with a checkpoint to resume from"""
    resume: bool = False
    """go on from the last checkpoint in `out`"""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: naming the option and what it may be.
        """
        sources.parse(self.data)
        if sources.parse(self.data)[0] in sources.STILLS:
            raise UserError(f"--data {self.data}: stills have no motion to learn from; give videos")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        if not 0 <= self.gamma < 1 or not 0 < self.validation_share < 1:
            raise UserError(
                f"--gamma must lie in [0, 1) and --validation-share in (0, 1), not {self.gamma} "
                f"and {self.validation_share}"
            )
        if self.target_kl <= 0 or self.initial_temperature <= 0 or self.learning_rate <= 0:
            raise UserError("--target-kl, --initial-temperature and --learning-rate are positive")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"unknown --device {self.device!r}: it is auto, cpu or cuda")

    def fixed(self) -> dict[str, Any]:
        """What may not change when a run is resumed, as JSON."""
        free = {"out", "steps", "max_minutes", "resume", "device"}
        values = {name: value for name, value in self.__dict__.items() if name not in free}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def train_agent(options: TrainOptions, console: Console | None = None) -> float:
    """Train; leaves ``best`` and ``last`` (encoder and agent), checkpoints and logs in ``out``.

    Returns:
        Mean reward per step of the best evaluation.

    Raises:
        UserError: on options, weights or data that are not as they should be, before anything is
            written.
    """
    options.check()
    console = console or Console()
    refuse_existing_run(options.out, options.resume)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    perception = Perception.load(options.weights, device)
    training, validation = _sequences(options)
    model = make_model(options, make_environments(training, perception, options), device)
    best = float("-inf")
    if options.resume:
        state = resumed_state(options.out / "checkpoints", options.fixed())
        restore_training_state(model, state)
        best = float(state["best"])
        console.print(f"resuming {options.out} at step {model.num_timesteps} of {options.steps}")
    evaluation = _evaluation_environment(validation, perception, options)
    keeper = _Keeper(options, perception)
    evaluator = EvalCallback(
        evaluation,
        callback_on_new_best=keeper.on_best,
        n_eval_episodes=options.validation_clips,
        eval_freq=max(1, options.validate_every // options.environments),
        log_path=str(options.out / "evaluations"),
        verbose=0,
    )
    keeper.evaluator = evaluator
    evaluator.best_mean_reward = best
    if not options.resume:  # the agent to beat is the one that has learned nothing
        keeper.init_callback(model)
        evaluator.best_mean_reward = _mean_reward(model, evaluation, options.validation_clips)
        console.print(f"untrained: {evaluator.best_mean_reward:.2f} a clip")
        keeper.export("best")
    write_text(options.out / "options.json", json.dumps(options.fixed(), indent=2) + "\n")
    model.learn(
        max(0, options.steps - model.num_timesteps),
        callback=CallbackList([evaluator, keeper]),
        reset_num_timesteps=not options.resume,
        progress_bar=True,
        tb_log_name="sac",
    )
    keeper.save()
    if model.num_timesteps < options.steps:
        console.print(f"time is up at step {model.num_timesteps}; go on with --resume")
    reward = float(evaluator.best_mean_reward)
    console.print(
        f"best evaluation: {reward:.2f} a clip (sum of IoU over {options.clip_length} steps)"
    )
    return reward


def make_model(options: TrainOptions, environments: VecEnv, device: str) -> SAC:
    """An untrained agent."""
    policy: dict[str, Any] = {"net_arch": list(options.hidden)}
    common: dict[str, Any] = {
        "learning_rate": options.learning_rate,
        "buffer_size": options.buffer_size,
        "learning_starts": options.learning_starts,
        "batch_size": options.batch_size,
        "gamma": options.gamma,
        "train_freq": 1,
        "gradient_steps": options.updates,
        "ent_coef": f"auto_{options.initial_temperature}",
        "tensorboard_log": str(options.out / "tensorboard"),
        "policy_kwargs": policy,
        "seed": options.seed,
        "device": device,
    }
    if options.policy == "latent-prior":
        return LatentPriorSAC(
            "LatentPriorPolicy", environments, target_kl=options.target_kl, **common
        )
    policy["features_extractor_class"] = StateExtractor
    return SAC("MultiInputPolicy", environments, **common)


class ClipCycle(gym.Wrapper[Any, Any, Any, Any]):
    """Resets go through a fixed list of clips, over and over: every evaluation sees the same ones.

    Args:
        env: ``BMVTrack-v0``.
        clips: ``(sequence index, start)`` each.
    """

    def __init__(self, env: gym.Env[Any, Any], clips: Sequence[tuple[int, int]]) -> None:
        super().__init__(env)
        self._clips, self._next = list(clips), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next clip of the list."""
        sequence, start = self._clips[self._next % len(self._clips)]
        self._next += 1
        return self.env.reset(seed=seed, options={"sequence": sequence, "start": start})


class _Keeper(BaseCallback):
    """Checkpoints, the agents ``best`` and ``last``, and the end of the time."""

    def __init__(self, options: TrainOptions, perception: Perception) -> None:
        super().__init__()
        self.options, self.perception = options, perception
        self.evaluator: EvalCallback | None = None
        self.on_best = _Best(self)
        self._deadline = time.monotonic() + 60 * (options.max_minutes or float("inf"))

    def _on_step(self) -> bool:
        if self.n_calls % max(1, self.options.validate_every // self.options.environments) == 0:
            self.save()
        return time.monotonic() < self._deadline

    def save(self) -> None:
        """Write a checkpoint and the agent ``last``."""
        assert isinstance(self.model, SAC)
        best = self.evaluator.best_mean_reward if self.evaluator else float("-inf")
        state = training_state(self.model) | {
            "options": json.dumps(self.options.fixed()),
            "best": float(best),
        }
        save_checkpoint(self.options.out / "checkpoints", self.model.num_timesteps, state)
        self.export("last")

    def export(self, name: str) -> None:
        """Write encoder and agent into one folder: all that tracking needs."""
        assert isinstance(self.model, SAC)
        folder = self.options.out / name
        self.perception.network.save_weights(folder)
        save_actor(self.model.actor, self.options.policy, self.options.coordinates, folder)


class _Best(BaseCallback):
    """Called by ``EvalCallback`` when an evaluation is the best so far."""

    def __init__(self, keeper: _Keeper) -> None:
        super().__init__()
        self._keeper = keeper

    def _on_step(self) -> bool:
        self._keeper.export("best")
        return True


def _mean_reward(model: SAC, environment: VecEnv, clips: int) -> float:
    mean, _ = evaluate_policy(model, environment, clips)
    assert isinstance(mean, float)
    return mean


def _sequences(
    options: TrainOptions,
) -> tuple[list[VideoSequence] | None, list[VideoSequence]]:
    """Sequences to train on (None: synthetic, new for every clip) and held-out ones."""
    if sources.parse(options.data)[0] == "synthetic":
        return None, _loaded(
            synthetic_sequences(options.validation_clips, options.seed), "synthetic"
        )
    sequences = _loaded(sources.load_sequences(options.data), options.data)
    usable = [s for s in sequences if len(s) > 1 and s.present[:-1].any()]
    if len(usable) < 2:
        raise UserError(f"{options.data} has {len(usable)} usable sequences; at least 2 are needed")
    order = np.random.default_rng(options.seed).permutation(len(usable))
    count = max(1, min(len(usable) - 1, round(options.validation_share * len(usable))))
    held_out = set(order[:count].tolist())
    training = [s for i, s in enumerate(usable) if i not in held_out]
    return training, [s for i, s in enumerate(usable) if i in held_out]


def _loaded(sequences: list[VideoSequence], name: str) -> list[VideoSequence]:
    return [sequence.in_memory() for sequence in track(sequences, f"reading {name}")]


def make_environments(
    sequences: list[VideoSequence] | None, perception: Perception, options: TrainOptions
) -> VecEnv:
    """Training environments side by side, sharing one encoder."""

    def make() -> gym.Env[Any, Any]:
        return Monitor(make_environment(sequences, perception, options))

    makers: list[Callable[[], gym.Env[Any, Any]]] = [make] * options.environments
    return DummyVecEnv(makers)


def make_environment(
    sequences: list[VideoSequence] | None, perception: Perception, options: TrainOptions
) -> BMVTrackEnv:
    """One environment as the options want it."""
    return BMVTrackEnv(
        sequences,
        perception,
        clip_length=options.clip_length,
        coordinates=options.coordinates,
        reward=options.reward,
    )


def _evaluation_environment(
    sequences: list[VideoSequence], perception: Perception, options: TrainOptions
) -> VecEnv:
    """Clips spread evenly over the held-out sequences, from evenly spread starts."""
    clips = []
    rounds = -(-options.validation_clips // len(sequences))
    for i in range(options.validation_clips):
        sequence = i % len(sequences)
        starts = np.flatnonzero(sequences[sequence].present[:-1])
        clips.append((sequence, int(starts[len(starts) * (i // len(sequences)) // rounds])))
    environment = ClipCycle(make_environment(sequences, perception, options), clips)
    return DummyVecEnv([lambda: Monitor(environment)])
