"""Track objects in your own video: a file, a folder of images, or a camera.

Writes to --out: NAME-tracked.mp4 with box, mask, 2σ ellipse of the predicted centre, score and frame rate
overlaid; the boxes as NAME-tracked.csv, and together with motion means and covariances as .json; with
--report an HTML report as .html. Frames that cannot be decoded, or differ in size from the first, are
skipped and counted. Ctrl-C stops tracking; all files are complete up to that frame.

    python scripts/track_video.py clip.mp4 --box 120,80,64,48 --report
    python scripts/track_video.py clip.mp4 --box 120,80,64,48 --box 300,90,50,40
    python scripts/track_video.py 0 --select
    python scripts/track_video.py DAVIS/JPEGImages/480p/libby --truth DAVIS/Annotations/480p/libby
"""

from bmvtrack.console import parse_options
from bmvtrack.errors import run_script
from bmvtrack.video.options import TrackOptions
from bmvtrack.video.session import track_video


def main() -> None:
    """Parse the options and track."""
    track_video(parse_options(TrackOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
