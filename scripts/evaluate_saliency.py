"""Evaluate the saliency maps of a network on ECSSD: the numbers of the paper's Table 5.

The network sees each whole image, resized. A network that takes a box (tracking mode) is given the one
whose patch is the whole image: upright, centred, half as wide and half as high. That is a hint that the
object is near the centre, which networks of paper mode do not get.

Three protocols side by side. `oracle-32` is the paper's: of 32 stochastic masks (times the classes), the
one with the best true IoU; it is an upper bound. `honest` is one pass at the posterior mean. `two-looks`
is honest as well and takes four passes: the image and its mirror image, then both again through the box
of what was found. Maps are min-max normalised. The metrics are MAE, and F with β² = 0.3 at each map's own
threshold (adaptive), at the best of 256 thresholds for all images (max), and averaged over them (mean).

Prints a table and writes to --out: summary.json, results/PROTOCOL.csv, maps (PROTOCOL/IMAGE.png) and
precision_recall.png.

    python scripts/evaluate_saliency.py --root ECSSD
    python scripts/evaluate_saliency.py --root ECSSD --weights runs/encoder/best
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bmvtrack.console import (
    check_at_least,
    check_output_folder,
    parse_options,
    print_results,
    progress_bar,
)
from bmvtrack.data.stills import count_without_mask, load_stills
from bmvtrack.errors import UserError, run_script
from bmvtrack.files import note_begun
from bmvtrack.segmentation.looks import TWO_LOOKS
from bmvtrack.segmentation.options import NetworkOptions
from bmvtrack.segmentation.protocols import HONEST, load_segmenter, oracle_name
from bmvtrack.segmentation.saliency_evaluation import check_still, evaluate_stills
from bmvtrack.segmentation.saliency_report import (
    build_summary,
    remove_previous,
    summary_table,
    write_report,
)


@dataclass(kw_only=True)
class Options(NetworkOptions):
    """Evaluate the saliency maps of a network on a folder of images and masks."""

    root: Path
    """Folder that contains images and ground_truth_mask (ECSSD), or DUTS's layout; images without a mask
    are left out."""
    every: int = 1
    """Take every n-th image, the first one first."""
    steepness: float = 1.0
    """Factor on the log-odds of maps. Above 1, maps are no longer probabilities but closer to binary, which
    MAE, adaptive and mean F reward; max F hardly changes."""
    out: Path = Path("runs/saliency")
    """Folder to write to."""

    def check(self) -> None:
        """Reject invalid numbers.

        Raises:
            UserError: naming the option.
        """
        super().check()
        check_at_least(1, self, "every")
        if not 0 < self.steepness < float("inf"):
            raise UserError(f"--steepness must be a positive number, not {self.steepness}")


def main() -> None:
    """Check the options and data, make and score the maps, print a table and write the report."""
    options = parse_options(Options, __doc__)
    options.check()
    check_output_folder(options.out)
    network = load_segmenter(options.weights, options.device)
    stills = options.shown(load_stills(options.root)[:: options.every])
    if left_out := count_without_mask(options.root):
        print(f"{left_out} images of {options.root} have no mask and are left out")
    with progress_bar() as progress:
        for still in progress.track(stills, description="checking the data"):
            check_still(still)
        remove_previous(options.out)
        protocols = oracle_name(options.draws), HONEST, TWO_LOOKS
        note_begun(options.out, "protocols", protocols, [still.name for still in stills])
        task = progress.add_task("finding what is salient", total=len(stills))
        results = evaluate_stills(
            network,
            stills,
            options.out,
            options.draws,
            options.batch_size,
            options.seed,
            options.steepness,
            lambda images: progress.advance(task, images),
        )
    dataset = options.called(options.root.resolve().name)
    if options.every > 1:
        dataset += f", one image in {options.every}"
    if options.steepness != 1:
        dataset += f", steepness {options.steepness:g}"
    summary = build_summary(dataset, options.weights, options.draws, options.seed, results)
    write_report(options.out, summary, results)
    print_results(summary_table(summary), out=options.out)


if __name__ == "__main__":
    run_script(main)
