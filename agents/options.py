"""Options of the agent's training, checked before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.policy import Inputs
from agents.storage import PolicyName
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_minutes
from bmvtrack.data import sources
from bmvtrack.data.frame_cache import GIBIBYTE
from bmvtrack.data.mirrored import Mirroring
from bmvtrack.devices import check_choice
from bmvtrack.errors import UserError
from bmvtrack.motion import Coordinates
from bmvtrack.perception import Precision
from envs.state import Reward

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
_POSITIVE = (
    "target_kl",
    "initial_temperature",
    "learning_rate",
    "actor_learning_rate",
    "cache_gigabytes",
)


@dataclass(frozen=True)
class TrainOptions:
    """Train a soft actor-critic to track, starting from the encoder's own Gaussian."""

    out: Path = Path("runs/sac")
    """folder for checkpoints, TensorBoard logs, evaluations, and the agents `best` and `last`"""
    data: tuple[str, ...] = ("synthetic",)
    """any of: synthetic, cutouts:FOLDER (of stills), davis16:FOLDER, davis16:FOLDER:SPLIT"""
    synthetic_count: int = 192
    """sequences to make for training, where data has `synthetic` or `cutouts`"""
    validation_data: tuple[str, ...] = ()
    """to choose the best agent on, named like `data`; default: sequences of `data` that are held out.
    For example, train on synthetic sequences and choose on real ones"""
    weights: str = DEFAULT_WEIGHTS
    """encoder: name of bundled weights, or a folder that pretrain_vae.py wrote"""
    policy: PolicyName = "latent-prior"
    """`latent-prior`: full-covariance residual of the encoder's Gaussian, KL for entropy.
    `diagonal-prior`: the same without the covariance's off-diagonals, for comparison.
    `plain`: Stable-Baselines3's own SAC on the same states, for comparison; its actor has two hidden
    layers of 256 if --actor-hidden gives none"""
    coordinates: Coordinates = "object"
    """of the action: `object`, where the encoder's Gaussian is exact, or `frame` (the paper's G_t)"""
    inputs: Inputs = "moments"
    """what the agent sees: `moments` of posterior and mask, and the last motion; `all`: also the box
    and the encoder's pooled features, which lets it overfit"""
    reward: Reward = "rotated"
    """IoU of the rotated boxes, or of their axis-aligned bounds"""
    steps: int = 20_000
    """environment steps in all"""
    environments: int = 16
    """clips stepped side by side, one encoder pass for all"""
    clip_length: int = 32
    """steps of an episode at most; the bundled agent had 96, which tracked the training sequences upside
    down better than 32 (docs/experiments.md)"""
    updates: int = 12
    """gradient steps after each step of all environments"""
    batch_size: int = 256
    """transitions in a gradient step"""
    learning_rate: float = 1e-3
    """of critics and temperature (`plain`: of the actor, too)"""
    actor_learning_rate: float = 1e-3
    """of the actor of `latent-prior`, at the start: it falls to 0 at the last step"""
    gamma: float = 0.8
    """discount: drift costs later IoU, but not for ever"""
    target_kl: float = 6.0
    """nats the policy may spend on leaving the prior (`latent-prior` only): acting with half of the
    prior's noise takes 1.6 of them, a shift by one standard deviation takes half of one"""
    initial_temperature: float = 0.02
    """weight of KL (or of entropy, for `plain`) at the start; tuned from there"""
    buffer_size: int = 100_000
    """transitions kept for replay"""
    cache_gigabytes: float | None = None
    """of frames on the device; those used least recently are read again. Default: 4, or a quarter of a
    GPU's free memory if that is more"""
    truth_share: float = 0.0
    """of the environments that act by the true motion, with the prior's noise; the others act by
    the policy (`latent-prior` and `diagonal-prior`)"""
    learning_starts: int = 2000
    """steps before the first update"""
    actor_hidden: tuple[int, ...] = ()
    """sizes of the hidden layers of an actor that makes what it will of all its inputs; none: one that
    learns how far to follow the mask, parameter by parameter, and nothing else (`latent-prior`)"""
    critic_hidden: tuple[int, ...] = (128, 128)
    """sizes of the hidden layers of the critics"""
    mirror: Mirroring = "all"
    """how the sequences of a folder are shown. `all`: as they are, and mirrored left to right, upside
    down and in time. `upside-down`: always so, and mirrored left to right and in time as well, to
    choose the best agent, too: where the encoder was trained on the same sequences, it errs there as
    it does on new ones. `none`: as they are"""
    validation_share: float = 0.2
    """of the sequences of a folder, held out to choose the best agent"""
    validation_clips: int = 96
    """clips in an evaluation, the same ones each time"""
    validate_every: int = 4000
    """steps between evaluations; a checkpoint is written at each"""
    device: str = "auto"
    """of encoder and agent: `auto`, `cpu` or `cuda`"""
    precision: Precision = "float32"
    """of the encoder while the agent is trained: `bfloat16` is up to twice as fast for many clips at
    once where the processor has instructions for it (AVX512-BF16, AMX, CUDA)"""
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
        if not self.data:
            raise UserError("--data needs at least one name, like synthetic or davis16:FOLDER")
        for option, named in (("data", self.data), ("validation-data", self.validation_data)):
            for source in named:
                sources.refuse_stills(option, source)
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        if not 0 <= self.gamma < 1 or not 0 < self.validation_share < 1:
            raise UserError(
                f"--gamma must lie in [0, 1) and --validation-share in (0, 1), not {self.gamma} "
                f"and {self.validation_share}"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be positive, and finite")
        for name in ("actor_hidden", "critic_hidden"):
            if min(getattr(self, name), default=1) < 1:
                raise UserError(f"--{name.replace('_', '-')}: a layer has at least one unit")
        check_minutes(self.max_minutes)
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")
        if not 0 <= self.truth_share <= 1:
            raise UserError(f"--truth-share must lie in [0, 1], not {self.truth_share}")
        if self.truth_share and self.policy == "plain":
            raise UserError("--truth-share needs --policy latent-prior or diagonal-prior")
        check_choice(self.device)

    @property
    def cache_bytes(self) -> float | None:
        """Bytes that frames may take on the device; None: what is usual."""
        return None if self.cache_gigabytes is None else self.cache_gigabytes * GIBIBYTE

    def fixed(self) -> dict[str, Any]:
        """What may not change when a run is resumed, as JSON."""
        free = {
            *("out", "steps", "max_minutes", "resume"),
            *("device", "precision", "cache_gigabytes"),  # of the machine
        }
        values = {name: value for name, value in self.__dict__.items() if name not in free}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
