"""Convert a checkpoint published by the paper's authors to a folder of weights.

The tensors are copied from the file as float32; nothing in it is unpickled.

    python scripts/import_checkpoint.py betamvunet.ckpt weights/betamvunet
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from bmvtrack.console import parse_options
from bmvtrack.errors import UserError, run_script
from bmvtrack.models.published import load_published


@dataclass
class Options:
    """Convert a checkpoint published by the paper's authors to a folder of weights."""

    checkpoint: tyro.conf.Positional[Path]
    """Lightning checkpoint of βMVAE or βMVUnet"""
    out: tyro.conf.Positional[Path]
    """folder to write; it must not exist yet"""


def main() -> None:
    """Convert the checkpoint and print what it contains."""
    options = parse_options(Options, __doc__)
    if options.out.exists():
        raise UserError(f"{options.out} already exists; give another folder")
    network = load_published(options.checkpoint)
    network.save_weights(options.out, half=False)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{options.out}: {type(network).__name__}, {parameters:,} parameters, "
        f"{network.classes} classes, S = {network.bottleneck.samples}, "
        f"{network.input_size}×{network.input_size}×{network.input_channels}"
    )


if __name__ == "__main__":
    run_script(main)
