"""`python -m training` is `sparsight train`."""

from training.cli import train

train()
