from training.signals import run_program

run_program("indexer.cli", "builds")
