"""Comparison of training methods on the same states, clips, budget and seeds, to measure the latent prior."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from agents.options import TrainOptions
from agents.sequences import with_mirrors
from agents.training import make_environments, make_model
from bmvtrack.arrays import FloatArray
from bmvtrack.bundled import weights_folder
from bmvtrack.console import deadline
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.devices import resolved_device
from bmvtrack.errors import UserError
from bmvtrack.files import write_json
from bmvtrack.models import weights_fingerprint
from bmvtrack.perception import Perception
from envs.clips import Clip, ClipSource
from envs.vector_env import BMVTrackVectorEnv

# The defaults of Stable-Baselines3.
_DEFAULTS = {"learning_rate": 3e-4, "actor_hidden": (256, 256), "critic_hidden": (256, 256)}
Method = Literal[
    "latent prior",
    "latent prior and truth",
    "without correlations",
    "plain SAC, frame",
    "plain SAC, object",
]
METHODS: dict[Method, dict[str, Any]] = {
    "latent prior": {"policy": "latent-prior", "coordinates": "frame"},
    "latent prior and truth": {
        "policy": "latent-prior",
        "coordinates": "frame",
        "truth_share": 0.25,
    },
    "without correlations": {"policy": "diagonal-prior", "coordinates": "frame"},
    "plain SAC, frame": {"policy": "plain", "coordinates": "frame", **_DEFAULTS},
    "plain SAC, object": {"policy": "plain", "coordinates": "object", **_DEFAULTS},
}
"""The options in which the methods differ."""
UNTRAINED = "untrained prior"
_NEVER = 10**9


@dataclass(frozen=True)
class Curve:
    """The learning curve of one run.

    Attributes:
        method: a key of :data:`METHODS`.
        seed: seed of the run.
        steps: ``(K,)`` environment steps at each evaluation, from 0 on.
        overlaps: ``(K, C)`` mean IoU over the scored frames of each test clip.
        sequences: names of the sequences of the C clips.
    """

    method: str
    seed: int
    steps: NDArray[np.intp]
    overlaps: FloatArray
    sequences: tuple[str, ...]


def compare(
    options: TrainOptions,
    seeds: Sequence[int],
    training: Sequence[VideoSequence],
    test: Sequence[VideoSequence],
    test_clips: int,
    console: Console,
    max_minutes: float | None = None,
    methods: Sequence[Method] = tuple(METHODS),
) -> list[Curve]:
    """Train methods with every seed; each run is kept in ``options.out`` and not repeated.

    Args:
        options: options of every run, with one data set; method and seed are filled in, and
            ``validate_every`` is the number of steps between evaluations.
        seeds: seeds; each method is run once per seed.
        training: training sequences; mirrored for every method according to ``options``.
        test: test sequences; clips run to their end, with deterministic actions.
        test_clips: number of clips, spread over the test sequences.
        console: console for progress messages.
        max_minutes: no further run is started after this many minutes.
        methods: methods to train; runs of other methods that the folder holds are returned as well.

    Returns:
        A curve for each finished run.

    Raises:
        UserError: if an option is invalid, or the folder holds runs with other options, another encoder or
            other test clips.
    """
    device = resolved_device(options.device)
    perception = Perception.load(options.weights, device, options.precision)
    encoder = weights_fingerprint(weights_folder(options.weights))
    clips = ClipSource(test, _NEVER).spread(test_clips)
    seeds, methods = tuple(dict.fromkeys(seeds)), tuple(dict.fromkeys(methods))
    (source,) = options.data
    training = with_mirrors(options, source, training)
    end = deadline(max_minutes)
    # Every method once, then the next seed: so an unfinished comparison is fair, too.
    others = tuple(method for method in METHODS if method not in methods)
    every = [(seed, method) for seed in seeds for method in methods + others]
    runs = [(method, replace(options, seed=seed, **METHODS[method])) for seed, method in every]
    for _, run in runs:
        run.check()
    curves = []
    for method, run in runs:
        path = options.out / f"{method.replace(', ', '-').replace(' ', '-')}-{run.seed}.json"
        curve = _stored(path, run, encoder, clips)
        if curve is None and method in methods and time.monotonic() < end:
            gc.collect()  # model, callbacks and environments form cycles that keep frames
            curve = _train(method, run, perception, training, clips, console)
            _store(path, run, encoder, clips, curve)
        if curve is not None:
            curves.append(curve)
    return curves


def clip_overlaps(
    act: Callable[[dict[str, torch.Tensor]], torch.Tensor], environment: BMVTrackVectorEnv
) -> FloatArray:
    """Mean IoU of each clip in a vector environment that plays one clip per sub-environment.

    Args:
        act: maps observations to actions ``(N, 5)``.
        environment: environment with as many ``clips`` as sub-environments.

    Returns:
        ``(N,)`` means over the scored frames; NaN where there is none.
    """
    observations, _ = environment.reset()
    count = environment.num_envs
    total, frames = np.zeros(count), np.zeros(count)
    playing = np.ones(count, dtype=bool)
    while playing.any():
        observations, _, terminated, truncated, info = environment.step(act(observations))
        ended = (terminated | truncated).cpu().numpy()
        iou = info["iou"].cpu().numpy()
        if ended.any():  # there, the info belongs to the next clip
            iou = np.where(ended, info["final_info"]["iou"].cpu().numpy(), iou)
        scored = playing & np.isfinite(iou)
        total[scored] += iou[scored]
        frames[scored] += 1
        playing &= ~ended
    return np.asarray(total / np.where(frames, frames, np.nan))


class _Evaluations(BaseCallback):
    """Evaluates the overlaps on the test clips before the first step and at regular intervals."""

    def __init__(self, environment: BMVTrackVectorEnv, every: int, say: Callable[[str], None]):
        super().__init__()
        self.environment, self.every, self.say = environment, every, say
        self.steps: list[int] = []
        self.overlaps: list[FloatArray] = []

    def _on_training_start(self) -> None:
        self._evaluate()

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > self.steps[-1] // self.every:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        if self.num_timesteps != self.steps[-1]:
            self._evaluate()

    def _evaluate(self) -> None:
        assert isinstance(self.model, SAC)
        overlaps = clip_overlaps(_actions_of(self.model), self.environment)
        self.steps.append(self.num_timesteps)
        self.overlaps.append(overlaps)
        self.say(f"step {self.num_timesteps}: {np.nanmean(overlaps):.3f}")


def _train(
    method: str,
    options: TrainOptions,
    perception: Perception,
    training: list[VideoSequence],
    clips: list[Clip],
    console: Console,
) -> Curve:
    environments = make_environments(options, perception, training)
    model = make_model(options, environments, str(perception.device))
    evaluation = BMVTrackVectorEnv(
        len(clips),
        weights=Perception(perception.network, perception.device),  # always float32
        coordinates=options.coordinates,
        lost_after=_NEVER,
        cache_bytes=options.cache_bytes,
        clips=clips,
    )
    callback = _Evaluations(
        evaluation,
        options.validate_every,
        lambda text: console.print(f"{method}, seed {options.seed}, {text}"),
    )
    model.learn(options.steps, callback=callback)
    names = tuple(clip.sequence.name for clip in clips)
    overlaps = np.stack(callback.overlaps)
    return Curve(method, options.seed, np.array(callback.steps), overlaps, names)


def _actions_of(model: SAC) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def act(observations: dict[str, torch.Tensor]) -> torch.Tensor:
        arrays = {name: value.cpu().numpy() for name, value in observations.items()}
        return torch.from_numpy(model.predict(arrays, deterministic=True)[0])

    return act


def _played(clips: Sequence[Clip]) -> list[list[Any]]:
    """The identity of the test clips, as JSON values."""
    return [[clip.sequence.name, clip.start, clip.last] for clip in clips]


def _store(
    path: Path, options: TrainOptions, encoder: str, clips: Sequence[Clip], curve: Curve
) -> None:
    values = {
        "method": curve.method,
        "options": options.fixed() | {"steps": options.steps},
        "encoder": encoder,
        "clips": _played(clips),
        "steps": curve.steps.tolist(),
        "overlaps": [[None if np.isnan(x) else x for x in row] for row in curve.overlaps.tolist()],
    }
    write_json(path, values)


def _stored(path: Path, options: TrainOptions, encoder: str, clips: Sequence[Clip]) -> Curve | None:
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        expected = options.fixed() | {"steps": options.steps}
        if values["options"] != json.loads(json.dumps(expected)):
            raise UserError(f"{path} holds a run with other options; give another --out")
        if values.get("encoder", encoder) != encoder:  # older files do not have it
            raise UserError(
                f"{path} holds a run with another encoder than {options.weights} is now; give another --out"
            )
        if values.get("clips") != _played(clips):
            raise UserError(
                f"{path} was evaluated on other test clips, or does not say on which; give another --out"
            )
        overlaps = np.array(values["overlaps"], dtype=np.float64)
        steps, names = np.array(values["steps"]), tuple(clip.sequence.name for clip in clips)
        return Curve(values["method"], options.seed, steps, overlaps, names)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold a run: {error!r}; remove it") from error
