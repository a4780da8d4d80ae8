"""What masks say of their boxes."""

import numpy as np


def mask_to_box(mask: np.ndarray) -> np.ndarray | None:
    """The tight box (4,) float32 around a mask (H, W), pixel i covering [i, i + 1); None around an empty one."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32) if len(xs) else None
