"""Options of pretraining, and the defaults that depend on the mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmvtrack.console import check_at_least, check_minutes, flag
from bmvtrack.data import sources
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.batch import Mode
from bmvtrack.errors import UserError
from bmvtrack.models.bottleneck import CovarianceKind, Direction, Reduction, Reparameterization
from bmvtrack.models.flows import BottleneckKind
from bmvtrack.training.objective import ClassWeights

Architecture = Literal["resnet-unet", "beta-mvae", "beta-mvunet"]
TrainingPrecision = Literal["auto", "32-true", "bf16-mixed"]


@dataclass(frozen=True)
class PretrainOptions:
    """Pretrain an encoder that maps frame patches to a mask and a Gaussian over the motion."""

    out: Path = Path("runs/pretrain")
    """folder for checkpoints, TensorBoard logs, and the weights `best` and `last`"""
    data: tuple[str, ...] = ("synthetic",)
    """training data, one or more of: synthetic, davis16:FOLDER, davis16:FOLDER:SPLIT, duts:FOLDER,
    stills:FOLDER, cutouts:FOLDER (sequences of objects cut out of such stills), youtube-vos:FOLDER
    (a store made by prepare_youtube_vos.py; mode `paper` only)"""
    shares: tuple[float, ...] = ()
    """share of each data set in a batch, in the order of --data; default: equal shares"""
    mode: Mode = "tracking"
    """`paper`: patches centred on their own object, one posterior per batch, KL to the prior.
    `tracking`: frame t+1 seen through box t, one posterior per frame, which must explain the true motion.
    With `paper`, the options below that depend on the mode default to the paper's settings"""
    architecture: Architecture = "resnet-unet"
    """`resnet-unet`: this project's network; `beta-mvae`, `beta-mvunet`: the paper's two networks,
    with 20 and 316 million parameters as published (width 64, input size 256)"""
    bottleneck: BottleneckKind = "multivariational"
    """`planar`, `radial`, `realnvp`, `iaf`: the paper's baselines, a normalising flow on the factorised
    prior instead of the multivariational bottleneck (mode `paper` only; needs the extra `flows`)"""
    prior: str | None = None
    """name or .json file of the motion prior; default by mode: `paper` (paper), `davis16` (tracking)"""
    width: int | None = None
    """channels of the first stage; default by architecture: 32 (resnet-unet), 64 (the paper's)"""
    input_size: int | None = None
    """side of the patch in pixels, a multiple of 64; default by mode: 256 (paper), 128 (tracking)"""
    samples: int = 50
    """S, the number of values per motion parameter at the bottleneck"""
    covariance: CovarianceKind | None = None
    """one posterior covariance per `batch` or per `frame`; default: `batch` (paper), `frame` (tracking,
    and flows)"""
    reduction: Reduction = "norm"
    """reduction over the batch for the `batch` covariance: `norm` as in the paper's text, `mean` as in its
    code. With `norm` the covariance grows with the batch: with --start-from, keep the --batch-size"""
    reparameterization: Reparameterization | None = None
    """reparameterization of the latent sample; default by mode: `affine` (paper Eq. 6), `full` (tracking)"""
    kl_direction: Direction = "posterior"
    """direction of the KL divergence: `posterior` is D(q‖p), Eq. 2; `prior` is D(p‖q), Algorithm 1"""
    class_weights: ClassWeights | None = None
    """weighting of the cross-entropy; default by mode: `balanced`, equal weight per class (paper); `none`,
    equal weight per pixel, so that masks are calibrated at a probability of ½ (tracking)"""
    beta: float | None = None
    """weight of the KL divergence; default by mode: 5 (paper), 0.01 (tracking)"""
    likelihood: float | None = None
    """weight of the true motion's negative log-likelihood; default by mode: 0 (paper), 0.1 (tracking)"""
    steps: int = 2500
    """total number of optimiser steps"""
    batch_size: int = 32
    """patches per step, over all devices"""
    learning_rate: float | None = None
    """peak learning rate; default by mode: 1e-4, cyclic from 5e-5, RAdam (paper); 2e-3, one-cycle, AdamW
    (tracking)"""
    start_from: Path | None = None
    """name of bundled weights, or a folder, to start from instead of random weights. They must belong to the
    same network, but the input size may differ, without a template the width may be a fraction of --width
    (channels are copied, and the output stays the same), and they may lack the template, which the network
    then learns to use"""
    template: bool = False
    """show the network which object to follow with a patch of another frame; a tracker uses the first
    frame (architecture `resnet-unet`, mode `tracking`)"""
    distractors: float = 0.0
    """share of samples with another sample's object behind their own (mode `tracking`)"""
    backgrounds: float = 0.0
    """share of samples with another sample's whole patch as the background of their object (mode
    `tracking`)"""
    whole_images: float = 0.0
    """share of stills that are shown whole, as in evaluate_saliency.py, so that the network learns to find
    the salient object without a box (mode `tracking`)"""
    own_boxes: float = 0.0
    """share of a video's samples that are seen through the box that the network itself predicted in the
    previous frame, so that it learns to correct its own errors (mode `tracking`)"""
    box_threshold: float | None = None
    """probability above which a mask's pixels count for its box, saved with the weights; default: the
    threshold whose boxes agree best with the true boxes of held-out frames (mode `tracking`)"""
    jitter: tuple[float, ...] = Augmentation().strengths
    """scale factors of the random box motion; each sample draws one of them (mode `tracking`)"""
    synthetic_count: int = 128
    """number of sequences to generate for `synthetic` and `cutouts` data"""
    longest_side: int = 480
    """frames are downscaled to this longest side, in pixels, before training"""
    validation_share: float = 0.05
    """share of the sequences (or stills) of each data set that is held out for validation; a youtube-vos
    store is already split"""
    split_seed: int = 0
    """seed of the split into training and validation data, independent of --seed. With --start-from, give
    the value that those weights were trained with (for weights older than this option, their --seed);
    otherwise the validation data may include data that they were trained on"""
    resident_gigabytes: float | None = None
    """largest data set that is kept on the device; each one in --data counts separately. A larger
    youtube-vos store is streamed from disk, other larger data is sampled and cropped on the host.
    Default: half of a GPU's free memory"""
    validate_every: int = 250
    """steps between validations; a checkpoint is written at each, and every ten minutes in between"""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`"""
    devices: int | None = None
    """GPUs (on a CPU: processes) per machine; default: one, or as many as torchrun started"""
    nodes: int | None = None
    """number of machines, which must share the folder --out; default: one, or as many as torchrun started.
    Without torchrun, start the script on each machine with MASTER_ADDR, MASTER_PORT and NODE_RANK set"""
    precision: TrainingPrecision = "auto"
    """`auto`: bf16 on a GPU with bfloat16 instructions, float32 elsewhere"""
    compile: bool = False
    """compile encoder and decoder with torch.compile; this takes a minute or more at the start and did not
    pay off on the CPU"""
    seed: int = 0
    """random seed of everything but the split"""
    max_minutes: float | None = None
    """stop after this many minutes, with a checkpoint to resume from"""
    resume: bool = False
    """continue from the last checkpoint in --out"""

    def resolved(self) -> ResolvedOptions:
        """The same options, checked, with all defaults that depend on mode or architecture filled in.

        Raises:
            UserError: if an option is invalid; it names the option and the values it may take.
        """
        defaults = _MODE_DEFAULTS[self.mode] | {"width": _WIDTHS[self.architecture]}
        if self.bottleneck != "multivariational":
            defaults["covariance"] = "frame"
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        shares = self.shares or (1.0,) * len(self.data)
        options = ResolvedOptions(**vars(self) | missing | {"shares": shares})
        options.check()
        return options

    def fixed(self) -> dict[str, Any]:
        """The options that must not change when a run is resumed, as JSON values."""
        free = {
            *("out", "max_minutes", "resume", "resident_gigabytes"),
            *("device", "devices", "nodes", "precision", "compile"),  # depend on the machine
        }
        values = {name: value for name, value in self.__dict__.items() if name not in free}
        return {name: _to_json(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions(PretrainOptions):
    """Options of a run: :meth:`PretrainOptions.resolved` has filled in what depends on the mode."""

    prior: str
    width: int
    input_size: int
    covariance: CovarianceKind
    reparameterization: Reparameterization
    class_weights: ClassWeights
    beta: float
    likelihood: float
    learning_rate: float

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: if an option is invalid; it names the option and the values it may take.
        """
        for source in self.data:
            sources.parse(source)
        if not self.data:
            raise UserError("--data needs at least one name, like synthetic or davis16:FOLDER")
        positive = all(0 < share < math.inf for share in self.shares)
        if len(self.shares) != len(self.data) or not positive:
            raise UserError(f"--shares needs one positive number for each of --data {self.data}")
        counts = ("steps", "batch_size", "synthetic_count", "validate_every", "width")
        check_at_least(1, self, *counts, "devices", "nodes")
        check_at_least(6, self, "samples")
        check_at_least(32, self, "longest_side")
        check_at_least(0, self, "resident_gigabytes")
        check_minutes(self.max_minutes)
        self._check_ranges()
        self._check_mode()

    def _check_ranges(self) -> None:
        if self.input_size < 64 or self.input_size % 64:
            raise UserError(f"--input-size must be a multiple of 64, not {self.input_size}")
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation-share must lie in (0, 1), not {self.validation_share}")
        if not self.jitter or not all(0 <= factor < math.inf for factor in self.jitter):
            raise UserError(f"--jitter needs non-negative factors, not {self.jitter}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate must be positive, not {self.learning_rate}")
        for name, weight in (("beta", self.beta), ("likelihood", self.likelihood)):
            if not 0 <= weight < math.inf:
                raise UserError(f"--{name} must not be negative, not {weight}")
        if self.box_threshold is not None and not 0 < self.box_threshold < 1:
            raise UserError(f"--box-threshold must lie in (0, 1), not {self.box_threshold}")
        for name in ("seed", "split_seed"):
            if not 0 <= (value := getattr(self, name)) < _SEEDS:
                raise UserError(f"{flag(name)} must lie in [0, 2⁶²), not {value}")
        if not 0 <= self.distractors <= self.distractors + self.backgrounds <= 1:
            raise UserError(
                "--distractors and --backgrounds must not be negative, and together at most 1, not "
                f"{self.distractors} and {self.backgrounds}"
            )
        for name in ("whole_images", "own_boxes"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"{flag(name)} must lie in [0, 1], not {share}")

    def _check_mode(self) -> None:
        """Check what suits only one of the modes."""
        if self.bottleneck != "multivariational":
            self._check_flow()
        if (self.mode, self.covariance) == ("tracking", "batch"):
            raise UserError("--mode tracking needs one posterior per frame: omit --covariance")
        if self.template and (self.mode, self.architecture) != ("tracking", "resnet-unet"):
            raise UserError("--template is for --mode tracking --architecture resnet-unet")
        if self.mode == "tracking":
            return
        if self.box_threshold is not None:
            raise UserError("--box-threshold is for --mode tracking: mode paper tracks no boxes")
        if self.likelihood:
            raise UserError(
                "--likelihood is for --mode tracking: in mode paper patches are seen through the true "
                "box, so there is no motion to explain"
            )
        jittered = self.jitter != PretrainOptions.jitter
        if self.distractors or self.backgrounds or self.whole_images or self.own_boxes or jittered:
            raise UserError(
                "--distractors, --backgrounds, --whole-images, --own-boxes and --jitter are for "
                "--mode tracking"
            )

    def _check_flow(self) -> None:
        flow = f"--bottleneck {self.bottleneck}"
        if self.mode != "paper":
            raise UserError(f"{flow} is for --mode paper, not {self.mode}")
        if self.covariance != "frame":
            raise UserError(f"{flow} has one posterior per frame: omit --covariance")
        if self.kl_direction != "posterior":
            raise UserError(f"{flow} supports only D(q‖p): omit --kl-direction")


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


_SEEDS = 2**62  # torch takes 64 bits; ranks and random streams add to a seed
_MODE_DEFAULTS: dict[Mode, dict[str, Any]] = {
    "paper": {
        "prior": "paper",
        "input_size": 256,
        "covariance": "batch",
        "reparameterization": "affine",
        "class_weights": "balanced",
        "beta": 5.0,
        "likelihood": 0.0,
        "learning_rate": 1e-4,
    },
    "tracking": {
        "prior": "davis16",
        "input_size": 128,
        "covariance": "frame",
        "reparameterization": "full",
        "class_weights": "none",
        "beta": 0.01,
        "likelihood": 0.1,
        "learning_rate": 2e-3,
    },
}
_WIDTHS: dict[Architecture, int] = {"resnet-unet": 32, "beta-mvae": 64, "beta-mvunet": 64}
