"""What masks say of their boxes."""

import numpy as np


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Mask (H, W), not empty -> the tight box (4,) float32 around it, pixel i covering [i, i + 1)."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)
