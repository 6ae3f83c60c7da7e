"""The recipe of the bundled weights: the stages of their training, one after the other.

The encoder is trained in thirteen stages, which grow from 128×128 pixels to 256×256 and shrink again. The
twelfth (192×192) and the last (128×128) are for tracking and have an agent each; the ninth (256×256) is for
masks. The covariance that trackers report with each of the three is calibrated.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from agents.options import TrainOptions
from agents.training import train_agent
from bmvtrack.bundled import ACCURATE_WEIGHTS, DEFAULT_WEIGHTS, MASK_WEIGHTS
from bmvtrack.console import check_minutes, deadline
from bmvtrack.devices import knows_bfloat16, resolved_device
from bmvtrack.errors import UserError
from bmvtrack.files import DAMAGED, atomic_folder
from bmvtrack.tracking.calibration import CalibrationOptions, TooFewFrames, calibrate
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.checkpoint import checkpoint_step, checkpoints
from bmvtrack.training.parts import Banks

Stage = PretrainOptions | TrainOptions
_RESULTS = {  # stages whose last weights are bundled, and the names of these
    "ninth": MASK_WEIGHTS,
    "agent": ACCURATE_WEIGHTS,
    "small-agent": DEFAULT_WEIGHTS,
}


@dataclass(frozen=True)
class RecipeOptions:
    """Retrain the bundled weights from their training data, stage by stage."""

    davis: Path
    """DAVIS16 folder; its split `train` is used, at 400 pixels"""
    duts: Path
    """folder of DUTS-TR that contains DUTS-TR-Image and DUTS-TR-Mask"""
    out: Path = Path("runs/retrained")
    """folder for the stages; each set of retrained weights is copied into it under its bundled name as soon
    as it is finished"""
    effort: float = 1.0
    """fraction of the steps of every stage; a small value tests the whole pipeline first"""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`"""
    max_minutes: float | None = None
    """stop after this many minutes; repeat the same command to continue"""

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: if an option is invalid; it names the option.
        """
        if not 0 < self.effort <= 1:
            raise UserError(f"--effort must lie in (0, 1], not {self.effort}")
        check_minutes(self.max_minutes)


def recipe(options: RecipeOptions) -> dict[str, Stage]:
    """The stages of the encoder for real video, each starting from an earlier one, and two agents.

    They train in bfloat16 if the device has instructions for it, otherwise in float32.
    """
    reduced = knows_bfloat16(resolved_device(options.device))
    video = f"davis16:{options.davis}:train"
    first = PretrainOptions(
        data=(f"duts:{options.duts}", video),
        shares=(3, 1),
        longest_side=400,
        width=24,
        steps=6800,
        validate_every=400,
        precision="bf16-mixed" if reduced else "32-true",
        class_weights="balanced",  # in the first four stages; the later ones have masks of the right size
    )
    second = replace(
        first,
        shares=(2, 1),
        steps=5000,
        validate_every=500,
        start_from=options.out / "first" / "last",
        jitter=(0.5, 1, 1.6, 2.5),
        learning_rate=1e-3,
        seed=1,
    )
    third = replace(
        second,
        shares=(3, 2),
        start_from=options.out / "second" / "best",
        template=True,
        distractors=0.2,
        backgrounds=0.2,
        seed=2,
    )
    fourth = replace(
        third,
        shares=(2, 1),
        steps=7000,
        start_from=options.out / "third" / "best",
        whole_images=0.35,  # the third stage had unlearned saliency in whole images
        seed=3,
    )
    fifth = replace(
        fourth,
        steps=8000,
        start_from=options.out / "fourth" / "best",
        whole_images=0.5,
        class_weights="none",
        box_threshold=0.125,  # chosen by tracking training data upside down
        seed=4,
    )
    sixth = replace(
        fifth,
        steps=6500,
        start_from=options.out / "fifth" / "best",
        whole_images=0.6,
        seed=5,
    )
    seventh = replace(
        sixth,
        input_size=256,
        batch_size=128,
        steps=1300,
        validate_every=325,
        start_from=options.out / "sixth" / "best",
        seed=6,
    )
    eighth = replace(
        seventh,
        input_size=192,  # the largest that tracks at twice CSRT's frame rate on a CPU with AVX512
        batch_size=16,
        steps=3200,
        validate_every=800,
        start_from=options.out / "seventh" / "last",
        learning_rate=6e-4,
        whole_images=0.5,
        seed=7,
    )
    ninth = replace(
        seventh,
        shares=(3, 1),
        batch_size=16,
        steps=1200,
        validate_every=400,
        start_from=options.out / "seventh" / "last",
        learning_rate=3e-4,
        whole_images=0.8,  # for saliency maps
        seed=8,
    )
    tenth = replace(
        eighth,
        shares=(1, 1),
        steps=1800,
        validate_every=600,
        start_from=options.out / "eighth" / "last",
        own_boxes=0.7,
        seed=9,
    )
    eleventh = replace(
        tenth,
        data=(*tenth.data, f"cutouts:{options.duts}"),
        shares=(2, 1, 1),
        synthetic_count=300,  # thirty real videos are too few to learn one's own errors on
        steps=2200,
        validate_every=550,
        start_from=options.out / "tenth" / "last",
        seed=10,
    )
    twelfth = replace(
        eleventh,
        shares=(2, 1, 2),
        synthetic_count=350,
        steps=3600,
        validate_every=900,
        start_from=options.out / "eleventh" / "last",
        seed=11,
    )
    small = replace(
        twelfth,
        input_size=128,  # the largest that does so without
        batch_size=32,
        steps=2800,
        validate_every=700,
        start_from=options.out / "twelfth" / "last",
        learning_rate=1e-3,
        seed=14,
    )
    agent = TrainOptions(
        data=(video, "synthetic"),
        mirror="upside-down",  # there the encoder errs as it does on new data
        weights=str(options.out / "twelfth" / "last"),
        clip_length=96,  # in clips of 32 steps, mistakes cost too little
        validate_every=10_000,
        cache_gigabytes=2.0,
        precision="bfloat16" if reduced else "float32",
    )
    return {
        "first": first,
        "second": second,
        "third": third,
        "fourth": fourth,
        "fifth": fifth,
        "sixth": sixth,
        "seventh": seventh,
        "eighth": eighth,
        "tenth": tenth,
        "eleventh": eleventh,
        "twelfth": twelfth,
        "small": small,
        "small-agent": replace(agent, weights=str(options.out / "small" / "last")),
        "agent": agent,
        "ninth": ninth,
    }


def retrain(options: RecipeOptions, console: Console | None = None) -> Path | None:
    """Run the stages that are not done yet; a repeated call continues where the last one stopped.

    Returns:
        The folder with encoder and agent of the default weights; None if the time was up before.

    Raises:
        UserError: if options or data are invalid.
    """
    options.check()
    console = console or Console()
    end = deadline(options.max_minutes)
    banks: Banks = {}  # most stages read the same folders
    for name, stage in recipe(options).items():
        minutes = (end - time.monotonic()) / 60
        if minutes <= 0:
            console.print("time is up; repeat the same command to continue")
            return None
        console.rule(name)
        stage = _fitted(stage, options, name, minutes)
        trained = not _is_done(stage)
        if trained:
            _run(stage, console, banks)
        if not _is_done(stage):
            console.print("time is up; repeat the same command to continue")
            return None
        if name in _RESULTS:
            result = options.out / _RESULTS[name]
            if trained or not result.is_dir():
                _leave(options, options.out / name / "last", result, console)
            console.print(f"{name}: {result}", soft_wrap=True, markup=False)
    return options.out / DEFAULT_WEIGHTS


def calibration(options: RecipeOptions, weights: Path) -> CalibrationOptions:
    """How the covariance of retrained weights is calibrated: on what their agents are trained on."""
    return CalibrationOptions(
        weights=str(weights),
        data=(f"davis16:{options.davis}:train", "synthetic"),
        upside_down=True,
        device=resolved_device(options.device),
    )


def _leave(options: RecipeOptions, trained: Path, result: Path, console: Console) -> None:
    """Copy trained weights to where the user finds them, calibrated."""
    with atomic_folder(result) as temporary:
        shutil.copytree(trained, temporary, dirs_exist_ok=True)
        try:
            calibrate(calibration(options, temporary), console)
        except TooFewFrames as error:  # after a small --effort
            console.print(f"not calibrated: {error}", soft_wrap=True, markup=False)


def _fitted(stage: Stage, options: RecipeOptions, name: str, minutes: float) -> Stage:
    """A stage with the effort, output folder and time limit of this call."""
    out = options.out / name
    return replace(
        stage,
        out=out,
        steps=max(1, round(options.effort * stage.steps)),
        device=options.device,
        max_minutes=None if math.isinf(minutes) else minutes,
        resume=bool(checkpoints(out / "checkpoints")),
    )


def _is_done(stage: Stage) -> bool:
    """Whether a stage has the checkpoint of its last step, which is written after its weights.

    An encoder's checkpoints, which are large, may be deleted afterwards; its metrics tell the step, too.
    """
    there = checkpoints(stage.out / "checkpoints")
    if there:
        return checkpoint_step(there[-1]) >= stage.steps
    try:
        metrics = json.loads((stage.out / "metrics.json").read_text(encoding="utf-8"))
        return int(metrics["step"]) >= stage.steps
    except DAMAGED:
        return False


def _run(stage: Stage, console: Console, banks: Banks) -> None:
    if isinstance(stage, PretrainOptions):
        pretrain(stage, console, banks)
    else:
        train_agent(stage, console)
