"""Prepare YouTube-VOS for pretraining: a store with one patch per object and annotated frame.

An object is kept if it appears in every annotated frame of its clip and is smaller than 0.7 of the
frame's width and height in all of them (paper, appendix §2.1). Patches are centred on their own object.
A stopped run continues where it was; a finished store is checked, and repaired if necessary.

    python scripts/prepare_youtube_vos.py YOUTUBE-VOS patches
    python scripts/pretrain_vae.py --mode paper --data youtube-vos:patches
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from bmvtrack.console import check_at_least, parse_options, print_results, progress_bar
from bmvtrack.data.patch_store import PatchStore, Shard, Split
from bmvtrack.data.preparation import SplitBy, finish, prepare
from bmvtrack.data.youtube_vos import REASONS, load_youtube_vos
from bmvtrack.errors import UserError, run_script
from bmvtrack.files import held


@dataclass
class Options:
    """Prepare YouTube-VOS for pretraining."""

    root: tyro.conf.Positional[Path]
    """YouTube-VOS folder that contains `train` (or JPEGImages and Annotations)"""
    out: tyro.conf.Positional[Path]
    """folder for the store: new, empty, or begun by an earlier run with the same data and size"""
    size: int = 256
    """side of the patches in pixels, a multiple of 64"""
    split_by: SplitBy = "video"
    """`video`: no video is in both training and validation; `sequence`: object by object, as in the paper"""
    validation_share: float = 0.2
    """share of the videos (or sequences) for validation"""
    seed: int = 0
    """of the split"""
    class_agnostic: bool = False
    """use one class for all objects, as without meta.json; needed to train together with other data"""
    workers: int = os.cpu_count() or 1
    """number of processes that read frames and cut out patches"""


def main() -> None:
    """Cut out the patches, split them, and print what was kept."""
    options = parse_options(Options, __doc__)
    if not 0 < options.validation_share < 1:
        raise UserError(f"--validation-share must lie in (0, 1), not {options.validation_share}")
    check_at_least(0, options, "seed")
    data = load_youtube_vos(options.root)
    console = Console()
    if options.class_agnostic:
        console.print("class-agnostic: every object is of class 1")
    elif data.categories:
        console.print(f"{len(data.categories)} categories from meta.json")
    else:
        missing = f"no meta.json in {options.root}: class-agnostic, every object is of class 1"
        console.print(missing, soft_wrap=True)
    with held(options.out):
        with progress_bar() as progress:
            task = progress.add_task("cutting out patches", total=len(data.clips))
            shards = prepare(
                data,
                options.out,
                options.size,
                options.workers,
                lambda clips: progress.advance(task, clips),
            )
        show_dropped(shards, console)
        categories = () if options.class_agnostic else data.categories
        split = (options.split_by, options.validation_share, options.seed)
        finish(options.out, shards, options.size, categories, *split)
    show_kept(PatchStore(options.out), len(data.clips), console)


def show_dropped(shards: list[Shard], console: Console) -> None:
    """Print how many objects were dropped, by reason."""
    table = Table("dropped", "objects", box=box.SIMPLE_HEAD)
    for reason, words in REASONS.items():
        table.add_row(words, str(sum(shard.dropped.get(reason, 0) for shard in shards)))
    console.print(table)


def show_kept(store: PatchStore, clips: int, console: Console) -> None:
    """Print what was kept, its size, and where it is."""
    videos = len(np.unique(store.table.video))
    console.print(f"{clips - videos} of {clips} videos keep no object")
    kept = Table("kept", "videos", "objects", "patches", "GB", box=box.SIMPLE_HEAD)
    parts = {split: store.indices(split) for split in get_args(Split)}
    for name, rows in {**parts, "both": np.arange(len(store))}.items():
        columns = store.table.video[rows], store.table.sequence[rows], rows
        size = f"{len(rows) * store.record_bytes / 1e9:.3f}"
        kept.add_row(name, *(str(len(np.unique(column))) for column in columns), size)
    print_results(kept, out=store.folder)


if __name__ == "__main__":
    run_script(main)
