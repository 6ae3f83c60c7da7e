"""From somebody's video to the same video with boxes, their numbers, and a page to look at."""
