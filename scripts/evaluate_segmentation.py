"""Evaluate a network's masks on DAVIS16: the metrics of the paper's Tables 3 and 4.

Two protocols are evaluated side by side, both cropping at the true box. `oracle-32` is the paper's: of 32
stochastic masks per class, it takes the one with the largest IoU with the true mask, which gives an upper
bound. `honest` is one pass at the posterior's mean. J and F are computed on full frames; the first and the
last frame of a sequence are not scored.

Prints tables and writes to --out: summary.json, sequences.csv, results/PROTOCOL/SEQUENCE.csv, masks in
DAVIS's result layout (PROTOCOL/SEQUENCE/00000.png), stochastic_masks.png (the paper's Figure 6) and
masks_along_sequences.png (its Figure 8).

    python scripts/evaluate_segmentation.py --root DAVIS --split val
    python scripts/evaluate_segmentation.py --root DAVIS --split val --weights runs/encoder/best
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bmvtrack.console import check_output_folder, parse_options, print_results, progress_bar
from bmvtrack.data.davis import DavisSplit, load_davis16
from bmvtrack.errors import run_script
from bmvtrack.files import note_begun
from bmvtrack.segmentation.evaluation import SequenceScores, check_sequence, evaluate_sequence
from bmvtrack.segmentation.options import NetworkOptions
from bmvtrack.segmentation.pictures import write_masks_along_sequences, write_stochastic_masks
from bmvtrack.segmentation.protocols import HONEST, load_segmenter, oracle_name
from bmvtrack.segmentation.report import (
    build_summary,
    remove_previous,
    sequence_table,
    summary_table,
    write_report,
)


@dataclass(kw_only=True)
class Options(NetworkOptions):
    """Evaluate a network's masks on a DAVIS16 folder."""

    root: Path
    """DAVIS16 folder that contains JPEGImages and Annotations."""
    split: DavisSplit | None = None
    """Split from the folder's ImageSets; default: all sequences of the folder."""
    sequences: tuple[str, ...] = ()
    """Evaluate only these sequences of the folder."""
    out: Path = Path("runs/segmentation")
    """Folder to write to."""


def main() -> None:
    """Check everything, compute and score the masks, print tables and write the report."""
    options = parse_options(Options, __doc__)
    options.check()
    check_output_folder(options.out)
    network = load_segmenter(options.weights, options.device)
    sequences = options.shown(
        load_davis16(options.root, options.split, list(options.sequences) or None)
    )
    results: dict[str, list[SequenceScores]] = {}
    with progress_bar() as progress:
        for sequence in progress.track(sequences, description="checking the data"):
            check_sequence(sequence)
        remove_previous(options.out)
        protocols = oracle_name(options.draws), HONEST
        note_begun(options.out, "protocols", protocols, [s.name for s in sequences])
        task = progress.add_task("segmenting", total=sum(map(len, sequences)))
        for sequence in sequences:
            scores = evaluate_sequence(
                network,
                sequence,
                options.out,
                options.draws,
                options.batch_size,
                options.seed,
                lambda frames: progress.advance(task, frames),
            )
            for protocol, part in scores.items():
                results.setdefault(protocol, []).append(part)
    dataset = options.root.resolve().name + (f", {options.split}" if options.split else "")
    summary = build_summary(
        options.called(dataset), options.weights, options.draws, options.seed, results
    )
    write_stochastic_masks(
        options.out / "stochastic_masks.png", network, sequences, options.draws, options.seed
    )
    write_masks_along_sequences(
        options.out / "masks_along_sequences.png", sequences, options.out / HONEST
    )
    write_report(options.out, summary, results)
    print_results(sequence_table(summary), summary_table(summary), out=options.out)


if __name__ == "__main__":
    run_script(main)
