"""`python -m training` is `sparsight train`."""

from training.signals import run_program

run_program("training.cli", "train")
