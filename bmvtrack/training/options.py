"""Options of pretraining, and what the two modes make of those that are left open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmvtrack.console import check_minutes
from bmvtrack.data import sources
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.batch import Mode
from bmvtrack.errors import UserError
from bmvtrack.models.flows import BottleneckKind
from bmvtrack.training.objective import ClassWeights

Architecture = Literal["resnet-unet", "beta-mvae", "beta-mvunet"]


@dataclass(frozen=True)
class PretrainOptions:
    """Pretrain an encoder: from frame patches to a mask and a Gaussian over the motion."""

    out: Path = Path("runs/pretrain")
    """folder for checkpoints, TensorBoard logs, and the weights `best` and `last`"""
    data: tuple[str, ...] = ("synthetic",)
    """any of: synthetic, davis16:FOLDER, davis16:FOLDER:SPLIT, duts:FOLDER, stills:FOLDER,
    cutouts:FOLDER (sequences of objects cut out of such stills),
    youtube-vos:FOLDER (a store that prepare_youtube_vos.py made; mode `paper` only)"""
    shares: tuple[float, ...] = ()
    """share of each batch from each of the data, in the same order; equal if not given"""
    mode: Mode = "tracking"
    """`paper`: patches centred on their own object, one posterior a batch, KL to the prior.
    `tracking`: frame t+1 through box t, one posterior a frame, that must explain the true motion.
    With `paper`, every option below that depends on the mode is the paper's"""
    architecture: Architecture = "resnet-unet"
    """`resnet-unet`: the project's own; `beta-mvae`, `beta-mvunet`: the paper's two, 20 and 316
    million parameters as they were published (width 64, input size 256)"""
    bottleneck: BottleneckKind = "multivariational"
    """`planar`, `radial`, `realnvp`, `iaf`: a flow in its place, on the factorised prior; the paper's
    baselines, for mode `paper` (they need the extra `flows`)"""
    prior: str | None = None
    """name or .json file of the motion prior; default: `paper` or `davis16`, by mode"""
    width: int | None = None
    """channels of the first stage; default by architecture: 32 (resnet-unet), 64 (the paper's)"""
    input_size: int | None = None
    """side of the patch in pixels, a multiple of 64; default by mode: 256 (paper), 128 (tracking)"""
    samples: int = 50
    """S, numbers per motion parameter at the bottleneck"""
    covariance: Literal["batch", "frame"] | None = None
    """of the posterior; default: `batch` (paper), `frame` (tracking, and flows)"""
    reduction: Literal["norm", "mean"] = "norm"
    """over the batch, for the `batch` covariance: the paper's text, or its code"""
    reparameterization: Literal["affine", "full"] | None = None
    """default by mode: `affine` (paper Eq. 6), `full` (tracking)"""
    kl_direction: Literal["posterior", "prior"] = "posterior"
    """`posterior`: D(q‖p), Eq. 2; `prior`: D(p‖q), Algorithm 1"""
    class_weights: ClassWeights | None = None
    """of the cross-entropy; default by mode: `balanced`, every class counts alike (paper); `none`, every
    pixel does, so that masks are calibrated at a probability of ½ (tracking)"""
    beta: float | None = None
    """weight of the KL divergence; default by mode: 5 (paper), 0.01 (tracking)"""
    likelihood: float | None = None
    """weight of the true motion's negative log-likelihood; default by mode: 0 (paper), 0.1
    (tracking)"""
    steps: int = 2500
    """optimiser steps in all"""
    batch_size: int = 32
    """patches a step, on all devices together"""
    learning_rate: float | None = None
    """highest; default by mode: 1e-4 cyclic from 5e-5, RAdam (paper); 2e-3 one-cycle, AdamW
    (tracking)"""
    start_from: Path | None = None
    """folder of weights to start from instead of random ones; of the same network, of this
    or another input size (or of the same without a template, which it then learns to use)"""
    template: bool = False
    """tell the network which object to follow by a patch of another frame, as a tracker can by the
    first (resnet-unet, tracking)"""
    distractors: float = 0.0
    """share of samples with another sample's object behind theirs (tracking)"""
    backgrounds: float = 0.0
    """share of samples with another sample's whole patch behind their object (tracking)"""
    whole_images: float = 0.0
    """share of stills that are shown whole, as evaluate_saliency.py shows them, to learn what stands
    out where nobody says which object is meant (tracking)"""
    own_boxes: float = 0.0
    """share of a video's samples that are seen through the box that the network itself came to in the
    frame before: it learns to make up for the errors it makes (tracking)"""
    box_threshold: float | None = None
    """probability over which a pixel of a mask counts for its box, saved with the weights; default: at
    which boxes of held-out frames agree best with the true ones (tracking)"""
    jitter: tuple[float, ...] = Augmentation().strengths
    """factors of the random motion of boxes, one of which each sample draws (tracking)"""
    synthetic_count: int = 128
    """sequences to make, where data has `synthetic` or `cutouts`"""
    longest_side: int = 480
    """frames are reduced to this many pixels before training"""
    validation_share: float = 0.05
    """of the sequences (or stills) of each data set; a youtube-vos store is split already"""
    split_seed: int = 0
    """which ones are held out, whatever --seed is. With --start-from, give what those weights were trained
    with (weights from before this option: their --seed): what a run has trained on is not held out"""
    resident_gigabytes: float | None = None
    """data up to this size, each of `data` for itself, is kept on the device; a larger youtube-vos store
    is streamed from disk, other data drawn and cropped on the host. Default: half of a GPU's free memory"""
    validate_every: int = 250
    """steps between validations; a checkpoint is written at each"""
    device: str = "auto"
    """`auto`, `cpu`, or `cuda`"""
    devices: int | None = None
    """GPUs (or processes, on a CPU) of each machine; default: one, or what torchrun started"""
    nodes: int | None = None
    """machines, that all see `out`; default: one, or what torchrun started. Without torchrun, start
    the script on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK in its environment"""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """`auto`: bf16 on a GPU that has instructions for it, float32 elsewhere"""
    compile: bool = False
    """compile encoder and decoder with torch.compile, which takes a minute or more at the start; on
    the CPU it did not pay"""
    seed: int = 0
    """of everything random but the split"""
    max_minutes: float | None = None
    """stop after this time, with a checkpoint to resume from"""
    resume: bool = False
    """go on from the last checkpoint in `out`"""

    def resolved(self) -> PretrainOptions:
        """The same with all that depends on mode or architecture filled in, and all checked.

        Raises:
            UserError: naming the option and what it may be.
        """
        values: dict[str, Any] = dict(self.__dict__)
        defaults = _MODE_DEFAULTS[self.mode] | {"width": _WIDTHS[self.architecture]}
        if self.bottleneck != "multivariational":
            defaults["covariance"] = "frame"
        for name, default in defaults.items():
            if values[name] is None:
                values[name] = default
        values["shares"] = self.shares or (1.0,) * len(self.data)
        options = PretrainOptions(**values)
        options._check()
        return options

    def _check(self) -> None:
        for source in self.data:
            sources.parse(source)
        positive = all(0 < share < math.inf for share in self.shares)
        if len(self.shares) != len(self.data) or not self.data or not positive:
            raise UserError(f"--shares needs one positive number for each of --data {self.data}")
        for name in ("steps", "batch_size", "synthetic_count", "validate_every", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        for name, count in (("devices", self.devices), ("nodes", self.nodes)):
            if count is not None and count < 1:
                raise UserError(f"--{name} must be at least 1")
        if self.bottleneck != "multivariational":
            self._check_flow()
        if (self.mode, self.covariance) == ("tracking", "batch"):
            raise UserError("--mode tracking needs a posterior a frame: leave --covariance out")
        assert self.input_size is not None
        if self.input_size < 64 or self.input_size % 64:
            raise UserError(f"--input-size must be a multiple of 64, not {self.input_size}")
        if self.samples < 6:
            raise UserError(f"--samples must be at least 6, not {self.samples}")
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation-share must lie in (0, 1), not {self.validation_share}")
        check_minutes(self.max_minutes)
        if self.resident_gigabytes is not None and not self.resident_gigabytes >= 0:
            raise UserError(
                f"--resident-gigabytes must not be negative, not {self.resident_gigabytes}"
            )
        if not self.jitter or not all(0 <= factor < math.inf for factor in self.jitter):
            raise UserError(f"--jitter needs factors that are not negative, not {self.jitter}")
        self._check_numbers()
        if self.template and (self.mode, self.architecture) != ("tracking", "resnet-unet"):
            raise UserError("--template is for --mode tracking --architecture resnet-unet")
        both = self.distractors + self.backgrounds
        if not (0 <= self.distractors <= both <= 1):
            raise UserError(
                "--distractors and --backgrounds are shares: not negative, together at most 1, not "
                f"{self.distractors} and {self.backgrounds}"
            )
        for name, share in (
            ("--whole-images", self.whole_images),
            ("--own-boxes", self.own_boxes),
        ):
            if not 0 <= share <= 1:
                raise UserError(f"{name} is a share, in [0, 1], not {share}")
        if self.mode == "paper" and (both or self.whole_images or self.own_boxes):
            raise UserError(
                "--distractors, --backgrounds, --whole-images and --own-boxes are for --mode tracking"
            )
        if self.longest_side < 32:
            raise UserError(f"--longest-side must be at least 32, not {self.longest_side}")

    def _check_numbers(self) -> None:
        assert self.learning_rate is not None
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate must be positive, not {self.learning_rate}")
        for name, weight in (("beta", self.beta), ("likelihood", self.likelihood)):
            assert weight is not None
            if not 0 <= weight < math.inf:
                raise UserError(f"--{name} must not be negative, not {weight}")
        if self.box_threshold is not None and not 0 < self.box_threshold < 1:
            raise UserError(f"--box-threshold must lie in (0, 1), not {self.box_threshold}")
        if self.mode == "paper" and self.box_threshold is not None:
            raise UserError("--box-threshold is for --mode tracking: mode paper follows no boxes")
        if self.mode == "paper" and self.likelihood:
            raise UserError(
                "--likelihood is for --mode tracking: in mode paper patches are seen through the true "
                "box, and there is no motion to explain"
            )
        for name in ("seed", "split_seed"):
            if not 0 <= (value := getattr(self, name)) < _SEEDS:
                raise UserError(f"--{name.replace('_', '-')} must lie in [0, 2⁶²), not {value}")

    def _check_flow(self) -> None:
        flow = f"--bottleneck {self.bottleneck}"
        if self.mode != "paper":
            raise UserError(f"{flow} is for --mode paper, not {self.mode}")
        if self.covariance != "frame":
            raise UserError(f"{flow} has a posterior a frame: leave --covariance out")
        if self.kl_direction != "posterior":
            raise UserError(f"{flow} has D(q‖p) only: leave --kl-direction out")

    def fixed(self) -> dict[str, Any]:
        """What may not change when a run is resumed, as JSON."""
        free = {
            *("out", "max_minutes", "resume", "resident_gigabytes"),
            *("device", "devices", "nodes", "precision", "compile"),  # of the machine
        }
        values = {name: value for name, value in self.__dict__.items() if name not in free}
        return {name: _to_json(value) for name, value in values.items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


_SEEDS = 2**62  # torch takes 64 bits; ranks and streams of numbers add to a seed
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
