"""The pretraining loop: CPU or GPU, resumable to the bit, on data that lives on the device."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from bmvtrack import prior as priors
from bmvtrack.data import sources
from bmvtrack.data.patch_sampler import store_samplers
from bmvtrack.data.samples import Batch, BatchSource, Jitter, MixedSampler, Sampler
from bmvtrack.errors import UserError
from bmvtrack.files import write_text
from bmvtrack.models import BetaMVAE, BetaMVUNet, MultivariationalNetwork, ResNetUNet
from bmvtrack.training.checkpoint import refuse_existing_run, resumed_state, save_checkpoint
from bmvtrack.training.objective import averaged, objective, validation_metrics
from bmvtrack.training.options import Architecture, PretrainOptions

_LOG_EVERY = 20
_VALIDATION_BATCHES = 8
_GRADIENT_NORM = 5.0
_NETWORKS: dict[Architecture, type[MultivariationalNetwork]] = {
    "resnet-unet": ResNetUNet,
    "beta-mvae": BetaMVAE,
    "beta-mvunet": BetaMVUNet,
}


def pretrain(options: PretrainOptions, console: Console | None = None) -> dict[str, float]:
    """Train a network; leaves weights (best and last), checkpoints and logs in ``options.out``.

    Returns:
        The last validation's metrics.

    Raises:
        UserError: on options or data that are not as they should be, before anything is written.
    """
    options = options.resolved()
    console = console or Console()
    refuse_existing_run(options.out, options.resume)
    run = PretrainRun(options)
    if options.resume:
        run.load()
        console.print(f"resuming {options.out} at step {run.step} of {options.steps}")
    write_text(options.out / "options.json", json.dumps(options.fixed(), indent=2) + "\n")
    return run.train(console)


class PretrainRun:
    """Everything a run consists of: network, optimiser, data, random state, counters.

    Args:
        options: resolved.
    """

    def __init__(self, options: PretrainOptions) -> None:
        self.options = options
        self.fabric = make_fabric(options.device, options.precision)
        torch.manual_seed(options.seed)
        self.network = build_network(options, sources.class_count(options.data))
        self.train_sampler, self.validation_sampler = _samplers(options, self.fabric.device)
        network = self.network.to(memory_format=torch.channels_last)
        optimizer, self.scheduler = _optimizer(network, options)
        self.model, self.optimizer = self.fabric.setup(network, optimizer)
        self.generator = torch.Generator(self.fabric.device).manual_seed(options.seed)
        # What batches hold can be foreseen, and read ahead, if nothing else draws from theirs.
        self.noise = torch.Generator(self.fabric.device).manual_seed(options.seed + 2)
        self.step = 0
        self.best = float("inf")

    def train(self, console: Console) -> dict[str, float]:
        """Train to the last step or until the time is up; returns the last validation."""
        options = self.options
        deadline = time.monotonic() + 60 * (options.max_minutes or float("inf"))
        metrics: dict[str, float] = {}
        validated = -1
        writer = SummaryWriter(str(options.out / "tensorboard"), purge_step=self.step + 1)
        with writer, _progress(console) as progress:
            task = progress.add_task("training", total=options.steps, completed=self.step, loss="")
            while self.step < options.steps and time.monotonic() < deadline:
                terms = self.training_step()
                if self.step % _LOG_EVERY == 0:
                    progress.update(task, loss=self._log(writer, terms))
                progress.update(task, completed=self.step)
                if self.step % options.validate_every == 0:
                    metrics, validated = self._validate_and_save(writer, console), self.step
            if validated != self.step:
                metrics = self._validate_and_save(writer, console)
        if self.step < options.steps:
            console.print(f"time is up at step {self.step}; go on with --resume")
        return metrics

    def training_step(self) -> dict[str, torch.Tensor]:
        """One optimiser step; returns the terms of the loss."""
        options = self.options
        self.model.train()
        batch = self.train_sampler.draw(options.batch_size, self.generator)
        output = self.model(_channels_last(batch), generator=self.noise)
        assert options.beta is not None
        assert options.likelihood is not None
        terms = objective(
            output,
            batch,
            self.network.bottleneck,
            options.beta,
            options.likelihood,
            options.kl_direction,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(terms["total"])
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return terms

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Metrics on held-out sequences, the same samples every time, without latent noise."""
        options = self.options
        generator = torch.Generator(self.fabric.device).manual_seed(options.seed + 1)
        self.model.eval()
        parts = []
        for _ in range(_VALIDATION_BATCHES):
            batch = self.validation_sampler.draw(options.batch_size, generator)
            output = self.model(_channels_last(batch), stochastic=False)
            assert options.beta is not None
            assert options.likelihood is not None
            bottleneck = self.network.bottleneck
            part = validation_metrics(output, batch, bottleneck, options.mode == "tracking")
            terms = objective(
                output, batch, bottleneck, options.beta, options.likelihood, options.kl_direction
            )
            parts.append(part | {"loss": terms["total"]})
        return averaged(parts)

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on as if it had not stopped."""
        return {
            "options": json.dumps(self.options.fixed()),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "noise": self.noise.get_state(),
            "step": self.step,
            "best": self.best,
        }

    def load(self) -> None:
        """Go on from the newest readable checkpoint.

        Raises:
            UserError: if there is none, or it belongs to a run with other options.
        """
        folder = self.options.out / "checkpoints"
        state = resumed_state(folder, self.options.fixed(), self.fabric.device)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
        self.noise.set_state(state["noise"].cpu())
        self.step, self.best = state["step"], state["best"]

    def _log(self, writer: SummaryWriter, terms: dict[str, torch.Tensor]) -> str:
        values = {name: value.item() for name, value in terms.items()}
        self._check_finite(values["total"])
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, self.step)
        writer.add_scalar("train/learning_rate", self.scheduler.get_last_lr()[0], self.step)
        return f"loss {values['total']:.3f}"

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.step}; try a lower --learning-rate, "
                f"from the checkpoint in {self.options.out}"
            )

    def _validate_and_save(self, writer: SummaryWriter, console: Console) -> dict[str, float]:
        metrics = self.validate()
        self._check_finite(metrics["loss"])
        for name, value in metrics.items():
            writer.add_scalar(f"validation/{name}", value, self.step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        console.print(f"step {self.step}: {shown}")
        out = self.options.out
        self.network.save_weights(out / "last")
        if metrics["loss"] < self.best:
            self.best = metrics["loss"]
            self.network.save_weights(out / "best")
        save_checkpoint(out / "checkpoints", self.step, self.state())
        write_text(out / "metrics.json", json.dumps({"step": self.step} | metrics, indent=2) + "\n")
        return metrics


def build_network(options: PretrainOptions, classes: int = 2) -> MultivariationalNetwork:
    """The network that resolved options describe; ``classes`` count the background."""
    assert options.prior is not None
    assert options.covariance is not None
    assert options.reparameterization is not None
    tracking = options.mode == "tracking"
    return _NETWORKS[options.architecture](
        prior=priors.load(options.prior),
        width=options.width,
        input_size=options.input_size,
        input_channels=4 if tracking else 3,
        classes=classes,
        samples=options.samples,
        covariance=options.covariance,
        reduction=options.reduction,
        reparameterization=options.reparameterization,
        standardized=tracking,
    )


def make_fabric(device: str, precision: str) -> Fabric:
    """Lightning Fabric on one device; bf16 on a GPU unless told otherwise.

    Raises:
        UserError: if the device is unknown or not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown --device {device!r}: it is auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; use --device cpu")
    accelerator = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cuda" else "32-true"
    if accelerator == "cuda":
        torch.set_float32_matmul_precision("high")
    return Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]


def _samplers(options: PretrainOptions, device: torch.device) -> tuple[MixedSampler, MixedSampler]:
    pairs = [_samplers_of(source, options, device) for source in options.data]
    shares = list(options.shares)
    train, validation = (MixedSampler(samplers, shares) for samplers in zip(*pairs, strict=True))
    return train, validation


def _samplers_of(
    source: str, options: PretrainOptions, device: torch.device
) -> tuple[BatchSource, BatchSource]:
    assert options.input_size is not None
    store = sources.load_store(source)
    if store is not None:
        if options.mode != "paper":
            raise UserError(
                f"{source} holds patches centred on their object, and --mode {options.mode} needs "
                "what lies around them; give --mode paper"
            )
        gigabytes = options.resident_gigabytes
        limit = None if gigabytes is None else 1e9 * gigabytes
        return store_samplers(store, options.input_size, device, limit)
    sequences = sources.load_sequences(
        source, synthetic_count=options.synthetic_count, seed=options.seed
    )
    bank = sources.load_bank(source, sequences, options.longest_side)
    parts = bank.split(options.validation_share, options.seed)
    bank = bank.to(device)
    channels = 4 if options.mode == "tracking" else 3
    train, validation = (
        Sampler(
            bank,
            targets.to(device),
            options.input_size,
            channels,
            options.mode,
            Jitter(),
            augment,
        )
        for targets, augment in zip(parts, (True, False), strict=True)
    )
    return train, validation


def _optimizer(
    network: torch.nn.Module, options: PretrainOptions
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    highest = options.learning_rate
    assert highest is not None
    if options.mode == "paper":
        radam = torch.optim.RAdam(network.parameters(), lr=highest / 2)
        return radam, torch.optim.lr_scheduler.CyclicLR(
            radam, base_lr=highest / 2, max_lr=highest, cycle_momentum=False
        )
    adamw = torch.optim.AdamW(network.parameters(), lr=highest, weight_decay=1e-2)
    return adamw, torch.optim.lr_scheduler.OneCycleLR(
        adamw, max_lr=highest, total_steps=options.steps + 1, pct_start=0.1
    )


def _channels_last(batch: Batch) -> torch.Tensor:
    return batch.patches.contiguous(memory_format=torch.channels_last)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )
