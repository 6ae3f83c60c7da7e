"""Small data sets of bright, turned rectangles."""

import cv2
import numpy as np


def write_rectangles(root):
    """Videos and stills below ``root``; returns both as ``--data`` names them."""
    generator = np.random.default_rng(0)
    for number in range(4):
        x, y, angle = generator.uniform((30, 30, 0), (50, 40, 180))
        for t in range(4 if number < 3 else 6):
            write_frame(root / "videos", f"v{number}/{t:05}", (x + 3 * t, y + t, angle + 4 * t))
    for number in range(5):
        x, y, angle = generator.uniform((30, 30, 0), (50, 40, 180))
        write_frame(root / "stills", f"{number}", (x, y, angle), ("images", "masks"))
    return f"davis16:{root / 'videos'}", f"stills:{root / 'stills'}"


def write_frame(root, name, state, folders=("JPEGImages/480p", "Annotations/480p")):
    x, y, angle = state
    points = cv2.boxPoints(((x, y), (34, 16), angle)).round().astype(np.int32)
    mask = np.zeros((72, 90), np.uint8)
    cv2.fillPoly(mask, [points], 255)
    image = np.where(mask[..., None] > 0, np.uint8(220), np.uint8([40, 70, 30]))
    for folder, picture, suffix in zip(folders, (image, mask), ("jpg", "png"), strict=True):
        path = root / folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
