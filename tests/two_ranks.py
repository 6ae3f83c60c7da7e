"""What each of two processes does, started by ``torchrun``; test_distributed.py reads the results."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import torch
from folders import full_disk
from rich.console import Console
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from bmvtrack import console, prior
from bmvtrack.data.batch import Batch
from bmvtrack.errors import UserError
from bmvtrack.files import held
from bmvtrack.models import ResNetUNet
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.objective import objective
from bmvtrack.training.pretrain import PretrainRun

COUNT = 32
REDUCTIONS = ("norm", "mean")


def one_pass(reduction, part, wrap):
    """Loss, posterior and gradients of a part of 32 patches; batch norms use running averages."""
    torch.manual_seed(0)
    network = ResNetUNet(
        prior.named("paper"),
        width=4,
        input_size=64,
        input_channels=3,
        classes=3,
        samples=10,
        covariance="batch",
        reduction=reduction,
        reparameterization="full",
        standardized=False,
    ).eval()
    patches, noise = torch.randn(COUNT, 3, 64, 64), torch.randn(COUNT, 10, 5)
    labels = (torch.rand(COUNT, 64, 64) < torch.linspace(0, 0.6, COUNT)[:, None, None]).long()
    labels[-4:] *= 2  # a class that one of the ranks alone has
    batch = Batch(patches[part], labels[part], *(torch.zeros(COUNT, 5)[part],) * 2)
    torch.randn, randn = lambda *_, **__: noise[part], torch.randn
    model = wrap(network)
    output = model(batch.patches, stochastic=True)
    torch.randn = randn
    terms = objective(output, batch, network.bottleneck, beta=5.0, likelihood=0.0)
    terms["total"].backward()
    return {
        "terms": {name: value.detach() for name, value in terms.items()},
        "covariance": output.posterior.covariance.detach(),
        "gradients": {name: value.grad for name, value in network.named_parameters()},
    }


def stopped_and_resumed(options):
    """A run without a stop; one that the first rank's clock, and no other, stops at step 2."""
    loop = sys.modules[PretrainRun.__module__]
    loop._LOG_EVERY = 1
    pretrain(replace(options, out=options.out / "straight"), Console())
    slow, clock = options.out / "stopped", loop.time
    minutes = count() if distributed.get_rank() == 0 else iter(lambda: 0, None)
    loop.time = console.time = SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    pretrain(replace(options, out=slow, max_minutes=2.5), Console())
    loop.time = console.time = clock
    pretrain(replace(options, out=slow, resume=True), Console())


def stopped_by_the_first(options):
    """What each rank is told where the first cannot lock a folder, and where it cannot write."""
    told = {}
    no_log = replace(options, out=options.out / "no log")
    no_log.out.mkdir(exist_ok=True)
    (no_log.out / "tensorboard").touch()  # where a folder should be
    try:
        pretrain(no_log)
    except (UserError, OSError) as error:
        told["no log"] = str(error)
    in_use, full = (replace(options, out=options.out / name) for name in ("in use", "full"))
    with held(in_use.out) if distributed.get_rank() == 1 else nullcontext():
        distributed.barrier()  # the other rank has it
        try:
            pretrain(in_use)
        except UserError as error:
            told["in use"] = str(error)
    with full_disk(3000):
        try:
            pretrain(full)
        except (UserError, OSError) as error:
            told["full"] = str(error)
    return told


def main():
    """Leaves what each rank computed, and two runs, in the folder that is the first argument."""
    out, *data = sys.argv[1:]
    options = PretrainOptions(
        out=Path(out),
        data=tuple(data),
        mode="paper",
        width=4,
        input_size=64,
        samples=10,
        steps=4,
        batch_size=4,
        validate_every=2,
        validation_share=0.3,
        device="cpu",
    )
    stopped_and_resumed(options)
    try:
        pretrain(replace(options, out=options.out / "unequal", batch_size=5))
    except UserError as error:
        print(error)
    rank = distributed.get_rank()
    part = slice(rank * COUNT // 2, (rank + 1) * COUNT // 2)
    results = {name: one_pass(name, part, DistributedDataParallel) for name in REDUCTIONS}
    results["told"] = stopped_by_the_first(options)
    torch.save(results, options.out / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
