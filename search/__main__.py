from training.signals import run_program

run_program("search.cli", "queries")
