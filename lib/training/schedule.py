"""How the learning rate moves over a stage's steps."""

import math

WARMUP = 0.05  # of a stage's steps: the learning rate rises from 0; then half a cosine back


def warmup_cosine(step: int, steps: int) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
