"""Shared by all tests: one thread (the tests are small), a screenless matplotlib."""

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def close_figures():
    """No test leaves a figure open for the next."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
