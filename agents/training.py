"""Training an agent: environments, callbacks, and the call to ``learn``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.console import Console
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.options import TrainOptions
from agents.policy import StateExtractor
from agents.replay import TensorReplayBuffer
from agents.sac import LatentPriorSAC
from agents.sb3_env import StableBaselinesEnv
from agents.sequences import training_and_validation
from agents.storage import restore_training_state, save_actor, training_state
from bmvtrack.bundled import weights_folder
from bmvtrack.console import deadline
from bmvtrack.data import sources
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import SEED_STRIDE
from bmvtrack.devices import resolved_device
from bmvtrack.errors import UserError
from bmvtrack.files import DAMAGED, atomic_folder, write_json
from bmvtrack.models import weights_fingerprint
from bmvtrack.perception import Perception
from bmvtrack.training.checkpoint import check_run_folder, held_run, resumed_state, save_checkpoint
from envs.clips import Clip
from envs.vector_env import BMVTrackVectorEnv


class Prints(TypedDict):
    """Fingerprints of what a run reads, by which a resumed run sees whether it has changed."""

    data: list[str]
    weights: str


def train_agent(options: TrainOptions, console: Console | None = None) -> float:
    """Train an agent and write ``best`` and ``last`` (encoder and agent), checkpoints and logs to ``out``.

    Returns:
        Mean reward per clip (the sum over its steps) of the best evaluation.

    Raises:
        UserError: if options, weights or data are invalid, before anything is written.
    """
    options.check()
    console = console or Console()
    check_run_folder(options.out, options.resume, options.fixed())
    device = resolved_device(options.device)
    perception = Perception.load(options.weights, device, options.precision)
    prints: Prints = {
        "data": sources.fingerprints((*options.data, *options.validation_data)),
        "weights": weights_fingerprint(weights_folder(options.weights)),
    }
    training, clips = training_and_validation(options)
    model = make_model(options, make_environments(options, perception, training), device)
    with held_run(options.out):
        return _train(options, model, perception, clips, prints, console)


def _train(
    options: TrainOptions,
    model: SAC,
    perception: Perception,
    clips: Sequence[Clip],
    prints: Prints,
    console: Console,
) -> float:
    """Train from the last checkpoint, or from scratch, to the last step; see :func:`train_agent`."""
    before = _resumed(options, model, prints, console) if options.resume else None
    evaluation = make_environments(options, perception, clips=clips)
    keeper = _Keeper(options, perception, prints, evaluation)
    evaluator = keeper.evaluator
    untrained = None
    if before is not None:
        evaluator.best_mean_reward = before
        _recall_evaluations(evaluator, model.num_timesteps)
        # For other clips and noise than at the start.
        model.set_random_seed(_seed_from(options, model.num_timesteps))
    else:  # the untrained agent is the one to beat
        keeper.init_callback(model)
        untrained = _mean_reward(model, evaluation, options.validation_clips)
        evaluator.best_mean_reward = untrained
        console.print(f"untrained: {untrained:.2f} per clip")
        keeper.export("best")
    write_json(options.out / "options.json", options.fixed())
    model.learn(
        max(0, options.steps - model.num_timesteps),
        callback=CallbackList([evaluator, keeper]),
        reset_num_timesteps=not options.resume,
        progress_bar=True,
        tb_log_name="sac",
    )
    keeper.save()
    reward = float(evaluator.best_mean_reward)
    _print_outcome(options, model, reward, reward == untrained, console)
    return reward


def _resumed(options: TrainOptions, model: SAC, prints: Prints, console: Console) -> float:
    """Load the last checkpoint into the model; return the best mean reward up to there.

    Raises:
        UserError: if there is none, or it belongs to a run with other options, data or encoder.
    """
    state = resumed_state(options.out / "checkpoints", options.fixed())
    data = (*options.data, *options.validation_data)
    sources.check_unchanged(data, state.get("data"), prints["data"])
    if state.get("weights", prints["weights"]) != prints["weights"]:  # not in older checkpoints
        raise UserError(
            f"--weights {options.weights} no longer holds the encoder that this run began with; put it "
            "back, or start over with another --out"
        )
    restore_training_state(model, state)
    at = f"at step {model.num_timesteps} of {options.steps}"
    over = model.num_timesteps >= options.steps
    text = (
        f"{options.out} is {at}: nothing is left to do" if over else f"resuming {options.out} {at}"
    )
    console.print(text, markup=False)
    return float(state["best"])


def _print_outcome(
    options: TrainOptions, model: SAC, reward: float, untrained: bool, console: Console
) -> None:
    """Print how far the training went and what came of it.

    Args:
        options: of the run.
        model: after training.
        reward: of the best evaluation.
        untrained: whether that was before the first step.
        console: to print on.
    """
    if model.num_timesteps < options.steps:
        console.print(f"time is up at step {model.num_timesteps}; continue with --resume")
    if model.num_timesteps <= options.learning_starts:
        console.print(f"nothing was learned: updates start after {options.learning_starts} steps")
    console.print(
        f"best evaluation: {reward:.2f} per clip (sum of IoU over up to {options.clip_length} steps)"
        + (", before the first step" if untrained else "")
    )
    written = f"written to {options.out / 'best'} and {options.out / 'last'}"
    console.print(written, soft_wrap=True, markup=False)


def make_model(options: TrainOptions, environments: VecEnv, device: str) -> SAC:
    """Create an untrained agent."""
    policy: dict[str, Any] = {
        "net_arch": {"pi": _actor_hidden(options), "qf": list(options.critic_hidden)},
        "features_extractor_class": StateExtractor,
        "features_extractor_kwargs": {"inputs": options.inputs},
    }
    common: dict[str, Any] = {
        "learning_rate": options.learning_rate,
        "buffer_size": options.buffer_size,
        "learning_starts": options.learning_starts,
        "batch_size": options.batch_size,
        "gamma": options.gamma,
        "train_freq": 1,
        "gradient_steps": options.updates,
        "ent_coef": f"auto_{options.initial_temperature}",
        "replay_buffer_class": TensorReplayBuffer,
        "tensorboard_log": str(options.out / "tensorboard"),
        "policy_kwargs": policy,
        "seed": _seed_from(options, 0),
        "device": device,
    }
    if options.policy == "plain":
        return SAC("MultiInputPolicy", environments, **common)
    policy["correlated"] = options.policy == "latent-prior"
    return LatentPriorSAC(
        "LatentPriorPolicy",
        environments,
        target_kl=options.target_kl,
        actor_learning_rate=lambda remaining: max(0.0, remaining) * options.actor_learning_rate,
        truth_share=options.truth_share,
        **common,
    )


def _seed_from(options: TrainOptions, step: int) -> int:
    """The random seed from a step on, in NumPy's range; environment i uses this seed plus i."""
    return (SEED_STRIDE * options.seed + step) % 2**32


def _actor_hidden(options: TrainOptions) -> list[int]:
    """The actor's hidden layers; that of ``plain`` would be linear without, so it gets SB3's default."""
    return list(options.actor_hidden or ((256, 256) if options.policy == "plain" else ()))


class _Keeper(BaseCallback):
    """Writes checkpoints and the agents ``best`` and ``last``, and stops when the time is up.

    Args:
        options: of the run.
        perception: the encoder.
        prints: see :class:`Prints`.
        evaluation: environments that play the validation clips.

    Attributes:
        evaluator: finds the best agent; to be called before this.
    """

    def __init__(
        self, options: TrainOptions, perception: Perception, prints: Prints, evaluation: VecEnv
    ) -> None:
        super().__init__()
        self.options, self.perception, self.prints = options, perception, prints
        self._every = max(1, options.validate_every // options.environments)
        self._deadline = deadline(options.max_minutes)
        self.evaluator = EvalCallback(
            evaluation,
            callback_on_new_best=_Best(self),
            callback_after_eval=_Report(),
            n_eval_episodes=options.validation_clips,
            eval_freq=self._every,
            log_path=str(options.out / "evaluations"),
            verbose=0,
        )

    def _on_step(self) -> bool:
        if self.n_calls % self._every == 0:
            self.save()
        return time.monotonic() < self._deadline

    def save(self) -> None:
        """Write a checkpoint and the agent ``last``."""
        assert isinstance(self.model, SAC)
        state = training_state(self.model) | {
            "options": json.dumps(self.options.fixed()),
            "best": float(self.evaluator.best_mean_reward),
            **self.prints,
        }
        self.export("last")
        save_checkpoint(self.options.out / "checkpoints", self.model.num_timesteps, state)

    def export(self, name: str) -> None:
        """Write encoder and agent to one folder, which is all that tracking needs."""
        assert isinstance(self.model, SAC)
        actor, options = self.model.actor, self.options
        with atomic_folder(options.out / name) as folder:
            self.perception.network.save_weights(folder)
            save_actor(actor, options.policy, options.coordinates, folder)


class _Best(BaseCallback):
    """Called by ``EvalCallback`` when an evaluation is the best so far."""

    def __init__(self, keeper: _Keeper) -> None:
        super().__init__()
        self._keeper = keeper

    def _on_step(self) -> bool:
        self._keeper.export("best")
        return True


class _Report(BaseCallback):
    """Prints the result of each evaluation."""

    parent: EvalCallback

    def _on_step(self) -> bool:
        # Not on our console: the progress bar makes room only for plain prints.
        text = f"step {self.num_timesteps}: {self.parent.last_mean_reward:.2f} per clip"
        print(text, flush=True)
        return True


def _mean_reward(model: SAC, environment: VecEnv, clips: int) -> float:
    mean, _ = evaluate_policy(model, environment, clips)
    return float(np.mean(mean))


def _recall_evaluations(evaluator: EvalCallback, step: int) -> None:
    """Load the evaluations up to a step, which would be overwritten otherwise."""
    assert evaluator.log_path is not None
    path = Path(evaluator.log_path).with_suffix(".npz")
    if not path.is_file():
        return
    try:
        with np.load(path) as stored:
            kept = stored["timesteps"] <= step
            names = ("timesteps", "results", "ep_lengths")
            steps, results, lengths = (stored[name][kept].tolist() for name in names)
    except DAMAGED:  # EvalCallback does not write it atomically; only the curve is lost
        return
    evaluator.evaluations_timesteps, evaluator.evaluations_results = steps, results
    evaluator.evaluations_length = lengths


def make_environments(
    options: TrainOptions,
    perception: Perception,
    sequences: list[VideoSequence] | None = None,
    clips: Sequence[Clip] | None = None,
) -> VecEnv:
    """Create parallel environments for Stable-Baselines3, with the sums of rewards in their infos.

    Args:
        options: options of the training.
        perception: the encoder that they share.
        sequences: sequences to draw clips from.
        clips: alternatively, clips to play in turn after each reset.
    """
    environment = BMVTrackVectorEnv(
        min(options.environments, len(clips)) if clips else options.environments,
        sequences,
        perception,
        clip_length=options.clip_length,
        coordinates=options.coordinates,
        reward=options.reward,
        cache_bytes=options.cache_bytes,
        clips=clips,
    )
    return VecMonitor(StableBaselinesEnv(environment))
