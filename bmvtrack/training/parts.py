"""Builders for the parts of a run: network, data, optimiser."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bmvtrack import prior as priors
from bmvtrack.bundled import weights_folder
from bmvtrack.data import sources
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.bank import FrameBank
from bmvtrack.data.batch import BatchSource
from bmvtrack.data.patch_sampler import store_samplers
from bmvtrack.data.samples import HostSampler, MixedSampler, Sampler
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import SEED_STRIDE
from bmvtrack.devices import data_capacity
from bmvtrack.errors import UserError
from bmvtrack.models import (
    BetaMVAE,
    BetaMVUNet,
    MultivariationalNetwork,
    ResNetUNet,
    load_network,
    saved_arguments,
)
from bmvtrack.training.options import Architecture, ResolvedOptions
from bmvtrack.training.radam import FusedRAdam

Banks = dict[tuple[str, int], FrameBank]
"""Frames that were read from folders, by source and longest side."""
_NETWORKS: dict[Architecture, type[MultivariationalNetwork]] = {
    "resnet-unet": ResNetUNet,
    "beta-mvae": BetaMVAE,
    "beta-mvunet": BetaMVUNet,
}


def build_network(options: ResolvedOptions, classes: int = 2) -> MultivariationalNetwork:
    """Build the network that the options describe, with its initial weights.

    Args:
        options: of the run.
        classes: number of classes, background included.

    Raises:
        UserError: if the prior does not suit the mode, or the weights to start from are missing or belong
            to another network.
    """
    tracking = options.mode == "tracking"
    prior = priors.load(options.prior)
    if tracking and prior.coordinates != "object":
        raise UserError(
            f"--prior {options.prior} is in {prior.coordinates} coordinates, but --mode tracking "
            "needs `object`; fit one with fit_prior.py --coordinates object"
        )
    start = None
    if options.start_from is not None and not options.resume:  # on resuming, a checkpoint has them
        start = load_network(weights_folder(str(options.start_from)))
    try:
        network = _NETWORKS[options.architecture](
            prior=prior,
            width=options.width,
            input_size=options.input_size,
            input_channels=4 if tracking else 3,
            classes=classes,
            samples=options.samples,
            covariance=options.covariance,
            reduction=options.reduction,
            reparameterization=options.reparameterization,
            standardized=tracking,
            bottleneck=options.bottleneck,
            **_own_arguments(options),
        )
    except ValueError as error:  # published weights to start from have demands of their own
        raise UserError(f"--architecture {options.architecture}: {error}") from error
    if start is not None:
        _start_from(start, network, f"--start-from {options.start_from}")
    return network


def _own_arguments(options: ResolvedOptions) -> dict[str, Any]:
    """The arguments that only some of the architectures take."""
    if options.architecture == "resnet-unet":
        return {"template": options.template}
    if options.architecture == "beta-mvunet":  # its weights do not determine its alignment
        before = options.start_from
        if options.resume:  # a run killed while replacing one of the two still has the other
            before = options.out / ("last" if (options.out / "last").is_dir() else "best")
        if before is not None:
            saved = saved_arguments(weights_folder(str(before)))
            return {"alignment": saved["alignment"]} if "alignment" in saved else {}
    return {}


def _start_from(
    start: MultivariationalNetwork, network: MultivariationalNetwork, option: str
) -> None:
    """Give a network the weights of another one, converted to its width and input size.

    Args:
        start: whose weights are taken.
        network: gets them; it keeps its own weights for a template if the other one has none.
        option: for messages.

    Raises:
        UserError: if the weights do not fit.
    """
    if (given := _identity(start)) != (asked := _identity(network)):
        raise UserError(
            f"{option} holds the weights of another network: {given}, not {asked}; give the same network "
            "options and the same kind of data, or other weights"
        )
    known = network.widened_state(network.resized_state(start.state_dict()))
    if network.uses_template and not start.uses_template:
        known |= {k: v for k, v in network.state_dict().items() if k.startswith("recalls.")}
    try:
        network.load_state_dict(known)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)  # it lists every layer
        raise UserError(
            f"{option} holds the weights of another network: {reason}; give the same network options, such "
            "as --width and --template, or other weights"
        ) from error
    for name in ("offset", "scale"):  # the units of the heads
        if not torch.equal(*(getattr(n.bottleneck, name) for n in (network, start))):
            raise UserError(
                f"{option} predicts in units of another prior or mode; give the same --prior and --mode"
            )


def _identity(network: MultivariationalNetwork) -> str:
    """What no change of width or input size can alter."""
    channels, samples = network.input_channels, network.bottleneck.samples
    return (
        f"a {type(network).__name__} with {channels} input channels, {network.classes} classes and {samples} "
        "samples per variable"
    )


def compile_network(network: MultivariationalNetwork) -> None:
    """Compile encoder and decoder, which take most of the time.

    The bottleneck between them stays uncompiled, because it draws random numbers and communicates.
    """
    given = ("encode_with_template", "memorize") if network.uses_template else ()
    for name in ("encode", *given, "decode"):
        setattr(network, name, torch.compile(getattr(network, name)))


def build_samplers(
    options: ResolvedOptions, device: torch.device, banks: Banks | None = None
) -> tuple[MixedSampler, MixedSampler]:
    """The samplers that draw batches for training and for validation.

    Args:
        options: of the run.
        device: the training device.
        banks: see :func:`~bmvtrack.training.pretrain.pretrain`.

    Raises:
        UserError: if data is missing, damaged, or unsuitable for the mode.
    """
    banks = {} if banks is None else banks
    pairs = [_samplers_of(source, options, device, banks) for source in options.data]
    shares = list(options.shares)
    train, validation = (MixedSampler(samplers, shares) for samplers in zip(*pairs, strict=True))
    return train, validation


def build_optimizer(
    network: torch.nn.Module, options: ResolvedOptions, device: torch.device
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """RAdam with a cyclic learning rate (mode ``paper``), or AdamW with a one-cycle one (``tracking``)."""
    highest = options.learning_rate
    if options.mode == "paper":
        kind = FusedRAdam if device.type == "cuda" else torch.optim.RAdam
        radam = kind(network.parameters(), lr=highest / 2)
        return radam, torch.optim.lr_scheduler.CyclicLR(
            radam, base_lr=highest / 2, max_lr=highest, cycle_momentum=False
        )
    adamw = torch.optim.AdamW(
        network.parameters(), lr=highest, weight_decay=1e-2, fused=device.type == "cuda"
    )
    total = options.steps + 1
    rising = max(0.1, 1.5 / total)  # OneCycleLR divides by the number of rising steps
    return adamw, torch.optim.lr_scheduler.OneCycleLR(
        adamw, max_lr=highest, total_steps=total, pct_start=rising
    )


def _samplers_of(
    source: str, options: ResolvedOptions, device: torch.device, banks: Banks
) -> tuple[BatchSource, BatchSource]:
    gigabytes = options.resident_gigabytes
    limit = None if gigabytes is None else 1e9 * gigabytes
    store = sources.load_store(source)
    if store is not None:
        if options.mode != "paper":
            raise UserError(
                f"{source} holds patches centred on their object, but --mode {options.mode} needs "
                "what lies around them; give --mode paper"
            )
        return store_samplers(store, options.input_size, device, limit)
    parts = _banks_of(source, options, banks)
    home = home_of(sum(bank.nbytes for bank in {bank for bank, _ in parts}), device, limit)
    moved = {bank: bank.to(home) for bank, _ in parts}
    channels = 4 if options.mode == "tracking" else 3
    augmentation = Augmentation(
        strengths=options.jitter,
        distractors=options.distractors,
        backgrounds=options.backgrounds,
        whole_images=options.whole_images,
        own_boxes=options.own_boxes,
    )
    train, validation = (
        Sampler(
            moved[bank],
            targets.to(home),
            options.input_size,
            channels,
            options.mode,
            augmentation,
            augment,
            options.template,
            graphed=augment and home.type == "cuda",
        )
        for (bank, targets), augment in zip(parts, (True, False), strict=True)
    )
    if home != device:
        return HostSampler(train, device), HostSampler(validation, device)
    return train, validation


def _banks_of(
    source: str, options: ResolvedOptions, banks: Banks
) -> list[tuple[FrameBank, torch.Tensor]]:
    """Bank and targets for training and for validation; both often share one bank."""
    share, count = options.validation_share, options.synthetic_count
    longest, made = options.longest_side, SEED_STRIDE * options.seed
    kind, key = sources.parse(source)[0], (source, longest)
    if kind == sources.CUTOUTS:
        split = partial(
            sources.split_cutouts, source, share, options.split_seed, count=count, made_from=made
        )
        apart = [
            sources.load_bank(source, part, longest, partial(_part, split, number))
            for number, part in enumerate(split())
        ]
        return [(bank, torch.arange(len(bank))) for bank in apart]
    make = partial(sources.load_sequences, source, synthetic_count=count, seed=made)
    sequences = make()
    bank = banks[key] if key in banks else sources.load_bank(source, sequences, longest, make)
    if kind not in sources.MADE:
        banks[key] = bank
    halves = bank.split(share, options.split_seed, len(sequences))
    return [(bank, targets) for targets in halves]


def _part(split: Callable[[], tuple[list[VideoSequence], ...]], number: int) -> list[VideoSequence]:
    return split()[number]


def home_of(size: int, device: torch.device, limit: float | None = None) -> torch.device:
    """The device that a bank is kept on: the training device if it fits there, otherwise the CPU.

    Args:
        size: size of the bank in bytes.
        device: the training device.
        limit: most bytes to keep there; None: :func:`~bmvtrack.devices.data_capacity`.
    """
    fits = size <= (data_capacity(device) if limit is None else limit)
    return device if fits else torch.device("cpu")
