from training.signals import run_program

run_program("eval.cli", "evaluate")
