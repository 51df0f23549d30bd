from training.cli import train

train()
