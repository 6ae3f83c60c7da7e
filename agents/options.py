"""Options for training an agent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.policy import Inputs
from agents.storage import PolicyName
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_at_least, check_minutes, flag
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
    """Train a soft actor-critic to track, starting from the encoder's Gaussian as its policy."""

    out: Path = Path("runs/sac")
    """folder for checkpoints, TensorBoard logs, evaluations, and the agents `best` and `last`"""
    data: tuple[str, ...] = ("synthetic",)
    """training data, one or more of: synthetic, cutouts:FOLDER (of stills), davis16:FOLDER,
    davis16:FOLDER:SPLIT"""
    synthetic_count: int = 192
    """number of training sequences to generate for `synthetic` and `cutouts` data"""
    validation_data: tuple[str, ...] = ()
    """data for selecting the best agent, named as in --data (for example, train on synthetic sequences and
    select on real ones); default: held-out sequences of --data"""
    weights: str = DEFAULT_WEIGHTS
    """encoder: name of bundled weights, or a folder written by pretrain_vae.py"""
    policy: PolicyName = "latent-prior"
    """`latent-prior`: a full-covariance residual of the encoder's Gaussian, with a KL term instead of
    entropy. `diagonal-prior`: the same without the covariance's off-diagonals, for comparison.
    `plain`: Stable-Baselines3's SAC on the same states, for comparison; its actor has two hidden layers
    of 256 units unless --actor-hidden is given"""
    coordinates: Coordinates = "object"
    """coordinates of the action: `object`, where the encoder's Gaussian is exact, or `frame` (the paper's
    G_t)"""
    inputs: Inputs = "moments"
    """inputs of the agent: `moments` of posterior and mask, and the last motion; `all`: also the box and the
    encoder's pooled features, which lets it overfit"""
    reward: Reward = "rotated"
    """IoU of the rotated boxes or of their axis-aligned bounds"""
    steps: int = 20_000
    """total number of environment steps"""
    environments: int = 16
    """number of clips stepped in parallel, with one encoder pass for all"""
    clip_length: int = 32
    """maximum number of steps per episode; the bundled agent was trained with 96, which tracked the training
    sequences upside down better than 32 (docs/experiments.md)"""
    updates: int = 12
    """gradient steps after each step of all environments"""
    batch_size: int = 256
    """transitions per gradient step"""
    learning_rate: float = 1e-3
    """learning rate of critics and temperature (policy `plain`: also of the actor)"""
    actor_learning_rate: float = 1e-3
    """initial learning rate of the actor, unless the policy is `plain`; it falls to 0 at the last step"""
    gamma: float = 0.8
    """discount factor: drift costs later IoU, but not for ever"""
    target_kl: float = 6.0
    """nats by which the policy may deviate from the prior (not `plain`): halving the prior's noise takes 1.6
    nats, a shift by one standard deviation takes half a nat"""
    initial_temperature: float = 0.02
    """initial weight of the KL term (`plain`: of the entropy); it is tuned during training"""
    buffer_size: int = 100_000
    """capacity of the replay buffer, in transitions"""
    cache_gigabytes: float | None = None
    """size of the frame cache on the device; the least recently used frames are evicted and read again.
    Default: 4, or a quarter of a GPU's free memory if that is more"""
    truth_share: float = 0.0
    """share of the environments that act by the true motion plus the prior's noise; the others act by the
    policy (`latent-prior` and `diagonal-prior`)"""
    learning_starts: int = 2000
    """steps before the first update"""
    actor_hidden: tuple[int, ...] = ()
    """sizes of the actor's hidden layers. Default: no hidden layers; the actor then learns only how far to
    follow the mask in each motion parameter, instead of a function of all its inputs (not `plain`)"""
    critic_hidden: tuple[int, ...] = (128, 128)
    """sizes of the critics' hidden layers"""
    mirror: Mirroring = "all"
    """views of a folder's sequences. `all`: original and mirrored left to right, upside down and in time, in
    all combinations. `upside-down`: always upside down, also those held out for selecting the best agent (but
    not --validation-data), and for training mirrored left to right and in time as well; if the encoder was
    trained on the same sequences, it errs on these views as on new ones. `none`: original only"""
    validation_share: float = 0.2
    """share of a folder's sequences that is held out for selecting the best agent"""
    validation_clips: int = 96
    """clips per evaluation, the same ones each time"""
    validate_every: int = 4000
    """steps between evaluations; a checkpoint is written at each"""
    device: str = "auto"
    """device of encoder and agent: `auto`, `cpu` or `cuda`"""
    precision: Precision = "float32"
    """precision of the encoder while the agent is trained: `bfloat16` is up to twice as fast for many
    parallel clips if the processor has instructions for it (AVX512-BF16, AMX, CUDA)"""
    seed: int = 0
    """random seed"""
    max_minutes: float | None = None
    """stop after this many minutes, with a checkpoint to resume from"""
    resume: bool = False
    """continue from the last checkpoint in --out"""

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: if an option is invalid; it names the option and the values it may take.
        """
        if not self.data:
            raise UserError("--data needs at least one name, like synthetic or davis16:FOLDER")
        for option, named in (("data", self.data), ("validation-data", self.validation_data)):
            for source in named:
                sources.refuse_stills(option, source)
        check_at_least(1, self, *_AT_LEAST_ONE)
        check_at_least(0, self, "seed")
        if not 0 <= self.gamma < 1 or not 0 < self.validation_share < 1:
            raise UserError(
                f"--gamma must lie in [0, 1) and --validation-share in (0, 1), not {self.gamma} "
                f"and {self.validation_share}"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{flag(name)} must be positive and finite")
        for name in ("actor_hidden", "critic_hidden"):
            if min(getattr(self, name), default=1) < 1:
                raise UserError(f"{flag(name)}: every layer needs at least one unit")
        check_minutes(self.max_minutes)
        if not 0 <= self.truth_share <= 1:
            raise UserError(f"--truth-share must lie in [0, 1], not {self.truth_share}")
        if self.truth_share and not round(self.truth_share * self.environments):
            raise UserError(
                f"--truth-share {self.truth_share} of {self.environments} environments rounds to none; give "
                "more --environments, or a larger share"
            )
        if self.truth_share and self.policy == "plain":
            raise UserError("--truth-share needs --policy latent-prior or diagonal-prior")
        check_choice(self.device)

    @property
    def cache_bytes(self) -> float | None:
        """Size of the frame cache in bytes; None: the default."""
        return None if self.cache_gigabytes is None else self.cache_gigabytes * GIBIBYTE

    def fixed(self) -> dict[str, Any]:
        """The options that must not change when a run is resumed, as JSON values."""
        free = {
            *("out", "steps", "max_minutes", "resume"),
            *("device", "precision", "cache_gigabytes"),  # depend on the machine
        }
        values = {name: value for name, value in self.__dict__.items() if name not in free}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
