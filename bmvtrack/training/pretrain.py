"""The pretraining loop: on one or several devices, with the data kept there; resumable, on a CPU bitwise."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console

from bmvtrack import prior as priors
from bmvtrack.console import deadline
from bmvtrack.cuda_graphs import Launcher
from bmvtrack.data import sources
from bmvtrack.data.batch import Batch
from bmvtrack.data.samples import state_seed
from bmvtrack.distributed import all_gather, on_first_rank
from bmvtrack.errors import UserError
from bmvtrack.files import write_json
from bmvtrack.models import Bottleneck, Output, fused_norm
from bmvtrack.training.box_threshold import best_threshold, box_overlaps
from bmvtrack.training.checkpoint import check_run_folder, held_run, resumed_state, save_checkpoint
from bmvtrack.training.devices import make_fabric, memory_format, synchronized
from bmvtrack.training.journal import Journal
from bmvtrack.training.objective import active_units, averaged, objective, validation_metrics
from bmvtrack.training.options import PretrainOptions, ResolvedOptions
from bmvtrack.training.parts import (
    Banks,
    build_network,
    build_optimizer,
    build_samplers,
    compile_network,
)

_LOG_EVERY = 20
_SAVE_EVERY = 600.0  # seconds: at most so much is lost when a run is killed far from a validation
_VALIDATION_BATCHES = 8
_GRADIENT_NORM = 5.0
_STREAMS = 3  # seeds per rank: of batches, of validation, of noise
Terms = dict[str, torch.Tensor]
"""The loss, ``total``, and its terms: scalars, on the device."""
Step = tuple[Terms, torch.Tensor]
"""The terms, and the predicted motion ``(B, 5)``."""


def pretrain(
    options: PretrainOptions, console: Console | None = None, banks: Banks | None = None
) -> dict[str, float]:
    """Train a network and write weights (best and last), checkpoints and logs to ``options.out``.

    Args:
        options: of the run.
        console: to print to.
        banks: frames that earlier runs of this process have read from the same folders, and that need not be
            read again; this run adds what it reads. None: they are forgotten afterwards.

    Returns:
        The metrics of the last validation.

    Raises:
        UserError: if options or data are invalid, before anything is written.
    """
    resolved = options.resolved()
    check_run_folder(resolved.out, resolved.resume, resolved.fixed())
    run = PretrainRun(resolved, banks)
    with ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(held_run(resolved.out)))
        if resolved.resume:
            run.load()
        return run.train(console or Console())


class PretrainRun:
    """The complete state of a run: network, optimiser, data, random state, counters.

    Args:
        options: of the run.
        banks: see :func:`pretrain`.

    Attributes:
        graphed: whether the forward and backward passes are launched as one CUDA graph; see
            :mod:`bmvtrack.cuda_graphs`.
    """

    def __init__(self, options: ResolvedOptions, banks: Banks | None = None) -> None:
        self.options = options
        self.fabric = make_fabric(options.device, options.precision, options.devices, options.nodes)
        self.batch_size = _share(options, self.fabric)
        torch.manual_seed(options.seed)
        self.network = build_network(options, sources.class_count(options.data))
        self.data = sources.fingerprints(options.data)
        self.prior = json.dumps(priors.load(options.prior).to_json())
        device = self.fabric.device
        self.train_sampler, self.validation_sampler = build_samplers(options, device, banks)
        self.layout = memory_format(self.network, device)
        network = synchronized(self.network, self.fabric).to(memory_format=self.layout)
        if options.compile:
            compile_network(self.network)
        optimizer, self.scheduler = build_optimizer(network, options, device)
        self.model, self.optimizer = self.fabric.setup(network, optimizer)
        self.seed = options.seed + _STREAMS * self.fabric.global_rank
        self.generator = torch.Generator(device).manual_seed(self.seed)
        # The noise has its own generator: as nothing else draws from that of the batches, their content is
        # predictable and can be read ahead.
        self.noise = torch.Generator(device).manual_seed(self.seed + 2)
        self.step = 0
        self.best = float("inf")
        self._now = 0.0  # when the clock was last read
        self._saved: float | None = None  # the same, when the last checkpoint was written
        self.graphed = self._can_be_graphed()
        self._launcher: Launcher[tuple[Step, list[torch.Tensor | None]]] = Launcher(device)
        self._shown: Batch | None = None  # input of the CUDA graph

    def train(self, console: Console) -> dict[str, float]:
        """Train to the last step or until the time is up; return the metrics of the last validation."""
        options, first = self.options, self.fabric.is_global_zero
        end = deadline(options.max_minutes)
        metrics: dict[str, float] = {}
        validated = -1
        folder = options.out / "tensorboard"
        on_first_rank(lambda: write_json(options.out / "options.json", options.fixed()))
        with Journal(folder, console, options.steps, self.step, first) as journal:
            if options.resume:
                journal.say(f"resuming {options.out} at step {self.step} of {options.steps}")
            while self.step < options.steps:
                up, save = self._clock(end)
                if up:
                    break
                if save:
                    self._save()
                terms = self.training_step()
                if self.step % _LOG_EVERY == 0:
                    self._log(journal, terms)
                journal.advance(self.step)
                if self.step % options.validate_every == 0:
                    metrics, validated = self._validate_and_save(journal), self.step
            if validated != self.step:
                metrics = self._validate_and_save(journal)
            if self.step < options.steps:
                journal.say(f"time is up at step {self.step}; continue with --resume")
            journal.say(f"written to {options.out / 'best'} and {options.out / 'last'}")
        return metrics

    def training_step(self) -> Terms:
        """Do one optimiser step; return the terms of this rank's loss. Nothing here waits for a GPU."""
        self.model.train()
        batch = self.train_sampler.draw(self.batch_size, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        terms, moved = self._launch(batch) if self.graphed else self._descend(batch)
        if self.options.own_boxes:
            self.train_sampler.follow(moved)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return terms

    def _descend(self, batch: Batch) -> Step:
        """Compute the gradients of the loss, clipped; they must be None before."""
        output = self.model(
            self._laid_out(batch.patches),
            generator=self.noise,
            template=self._laid_out(batch.template),
        )
        bottleneck = self.network.bottleneck
        terms = self.loss_terms(output, batch, bottleneck)
        self.fabric.backward(terms["total"])
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        # Detached, so that whoever keeps the terms keeps no autograd node: an older one, from another
        # stream, would break the capture of a graph.
        moved = bottleneck.to_motion(output.posterior).mean.detach()
        return {name: term.detach() for name, term in terms.items()}, moved

    def _can_be_graphed(self) -> bool:
        """Whether a step fits a CUDA graph: one GPU, nothing that may read from it, nothing compiled."""
        options, fabric = self.options, self.fabric
        alone = fabric.device.type == "cuda" and fabric.world_size == 1
        return alone and options.bottleneck == "multivariational" and not options.compile

    def _launch(self, batch: Batch) -> Step:
        """:meth:`_descend`, first eagerly, then as a CUDA graph that overwrites the same gradients."""
        shown, parameters = self._show(batch), list(self.network.parameters())

        def work() -> tuple[Step, list[torch.Tensor | None]]:
            return self._descend(shown), [parameter.grad for parameter in parameters]

        read = [value for value in vars(shown).values() if value is not None]
        places = [*parameters, *self.network.buffers(), *read]
        (terms, moved), gradients = self._launcher.run(
            work, places, (fused_norm.allowed(),), [self.noise]
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        values = torch.stack(list(terms.values())).unbind()  # the next launch overwrites them
        return dict(zip(terms, values, strict=True)), moved

    def _show(self, batch: Batch) -> Batch:
        """Copy the batch to the static input tensors, which are those of the first batch."""
        if self._shown is None:
            patches = batch.patches.contiguous(memory_format=self.layout)
            template = self._laid_out(batch.template)
            self._shown = replace(batch, patches=patches, template=template)
        for name, value in vars(batch).items():
            if value is not None:
                getattr(self._shown, name).copy_(value)
        return self._shown

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Metrics on held-out sequences, with the same samples every time and without latent noise."""
        options, bottleneck = self.options, self.network.bottleneck
        generator = torch.Generator(self.fabric.device).manual_seed(self.seed + 1)
        self.model.eval()
        parts, means, overlaps = [], [], []
        for _ in range(_VALIDATION_BATCHES):
            batch = self.validation_sampler.draw(self.batch_size, generator)
            output = self.model(
                self._laid_out(batch.patches),
                stochastic=False,
                template=self._laid_out(batch.template),
            )
            part = validation_metrics(output, batch, bottleneck, options.mode == "tracking")
            parts.append(part | {"loss": self.loss_terms(output, batch, bottleneck)["total"]})
            means.append(output.posterior.mean)
            if options.mode == "tracking":
                overlaps.append(box_overlaps(output, batch))
        metrics = self._mean_over_ranks(averaged(parts))
        if overlaps:
            threshold, overlap = best_threshold(all_gather(torch.cat(overlaps)).flatten(0, 1))
            metrics |= {"box_threshold": threshold, "box_iou": overlap}
        everywhere = all_gather(torch.cat(means)).flatten(0, 1)
        return metrics | {"active_units": float(active_units(everywhere, bottleneck))}

    def state(self) -> dict[str, Any]:
        """Everything needed to continue as if the run had not stopped; every rank must call this."""
        return {
            "options": json.dumps(self.options.fixed()),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generators": self._states(self.generator),
            "noises": self._states(self.noise),
            "reached": [self._gathered(boxes) for boxes in self.train_sampler.reached()],
            "step": self.step,
            "best": self.best,
            "data": self.data,
            "prior": self.prior,
        }

    def load(self) -> None:
        """Load the newest readable checkpoint.

        Raises:
            UserError: if there is none, or it belongs to a run with other options or another number of
                devices.
        """
        folder = self.options.out / "checkpoints"
        # Loaded to the CPU, where RAdam keeps its step counts; reading them from a GPU would synchronise.
        state = resumed_state(folder, self.options.fixed())
        ranks, before = self.fabric.world_size, len(state["generators"])
        if ranks != before:
            raise UserError(
                f"{folder} belongs to a run on {before} devices in total, but this one is on {ranks}; "
                "resume with as many (--devices, --nodes), or give another --out"
            )
        sources.check_unchanged(self.options.data, state.get("data"), self.data)
        if state.get("prior", self.prior) != self.prior:  # older checkpoints do not have it
            raise UserError(
                f"--prior {self.options.prior} is no longer the prior that this run began with, in whose "
                "units the network predicts; put it back, or start over with another --out"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for generator, states in ((self.generator, "generators"), (self.noise, "noises")):
            mine = state[states][self.fabric.global_rank].cpu().clone()  # a view crashes it
            if len(mine) == len(generator.get_state()):
                generator.set_state(mine)
            else:  # the run was on another kind of device: other numbers, as good as any
                generator.manual_seed(state_seed(mine))
        for boxes, saved in zip(self.train_sampler.reached(), state["reached"], strict=True):
            boxes.copy_(saved[self.fabric.global_rank])
        self.step, self.best = state["step"], state["best"]

    def loss_terms(self, output: Output, batch: Batch, bottleneck: Bottleneck) -> Terms:
        """The loss and its terms, with the weights of the options; see :func:`objective`."""
        options = self.options
        return objective(
            output,
            batch,
            bottleneck,
            options.beta,
            options.likelihood,
            options.kl_direction,
            options.class_weights,
        )

    def _clock(self, end: float) -> tuple[bool, bool]:
        """Whether the time is up, and whether it is time to save, by rank 0's clock.

        Several ranks check only rarely, because they have to wait for rank 0.
        """
        if self.fabric.world_size > 1 and self.step % _LOG_EVERY:
            return False, False
        self._now = time.monotonic()
        if self._saved is None:
            self._saved = self._now
        told = self._now >= end, self._now - self._saved >= _SAVE_EVERY
        up, save = self.fabric.broadcast(told)
        return up, save

    def _save(self) -> None:
        """Write a checkpoint between validations."""
        folder, state = self.options.out / "checkpoints", self.state()
        on_first_rank(lambda: save_checkpoint(folder, self.step, state))
        self._saved = self._now

    def _log(self, journal: Journal, terms: Terms) -> None:
        stacked = torch.stack(list(terms.values()))
        values = self._mean_over_ranks(dict(zip(terms, stacked.tolist(), strict=True)))
        self._check_finite(values["total"])
        rate = float(self.scheduler.get_last_lr()[0])
        on_first_rank(lambda: journal.record("train", values | {"learning_rate": rate}, self.step))
        journal.advance(self.step, values["total"])

    def _validate_and_save(self, journal: Journal) -> dict[str, float]:
        metrics = self.validate()
        self._check_finite(metrics["loss"])
        found = metrics.get("box_threshold", self.network.box_threshold)
        self.network.box_threshold = self.options.box_threshold or found
        better = metrics["loss"] < self.best
        self.best = min(self.best, metrics["loss"])
        state = self.state()
        # No rank continues or exits before everything is written.
        on_first_rank(lambda: self._report_and_save(journal, state, metrics, better))
        self._saved = self._now
        return metrics

    def _report_and_save(
        self, journal: Journal, state: dict[str, Any], metrics: dict[str, float], better: bool
    ) -> None:
        journal.record("validation", metrics, self.step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        journal.say(f"step {self.step}: {shown}")
        out = self.options.out
        self.network.save_weights(out / "last")
        if better:
            self.network.save_weights(out / "best")
        save_checkpoint(out / "checkpoints", self.step, state)
        write_json(out / "metrics.json", {"step": self.step} | metrics)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.step}; try a lower --learning-rate in a new run; "
                f"--start-from {self.options.out / 'last'}, if it exists, keeps what was learned"
            )

    def _laid_out(self, patches: torch.Tensor | None) -> torch.Tensor | None:
        return None if patches is None else patches.contiguous(memory_format=self.layout)

    def _mean_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self.fabric.device)
        return dict(zip(values, all_gather(mine).mean(dim=0).tolist(), strict=True))

    def _states(self, generator: torch.Generator) -> torch.Tensor:
        """``(ranks, bytes)`` states of the ranks' generators."""
        return self._gathered(generator.get_state())

    def _gathered(self, mine: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, stacked ``(ranks, …)`` on the CPU."""
        return all_gather(mine.to(self.fabric.device)).cpu()


def _share(options: ResolvedOptions, fabric: Fabric) -> int:
    """Patches per step on each rank."""
    ranks = fabric.world_size
    if options.batch_size % ranks:
        raise UserError(
            f"--batch-size {options.batch_size} is not divisible by the number of devices, {ranks}"
        )
    share = options.batch_size // ranks
    alone = ranks == 1 or fabric.device.type == "cpu"  # otherwise batch norms see all ranks
    small = (options.architecture, options.input_size) == ("resnet-unet", 64)
    if share == 1 and alone and small:  # the deepest feature maps are 1×1
        raise UserError(
            "one patch of 64×64 is too little for batch norm: give a --batch-size of at least two "
            "per device, or --input-size 128"
        )
    return share
