from eval.cli import evaluate

evaluate()
