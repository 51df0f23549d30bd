"""One small file a question: arrays in, a frozen dataclass out. No evaluator knows a store, a file or a command."""

from eval.evaluators.accuracy import Accuracy, accuracy_of, mcnemar, predicted
from eval.evaluators.baselines import FACTORIES, Baseline, Baselines, LeftOut, judge_baselines
from eval.evaluators.codes import CodeFigures, code_figures
from eval.evaluators.concepts import ConceptAccuracy, concept_accuracy
from eval.evaluators.corruptions import CASES, Case, Corruptions, judge_corrupted
from eval.evaluators.examples import Example, Examples, Picture, draw_examples
from eval.evaluators.memory import Memory, Share, memory_of
from eval.evaluators.open_words import OpenWords, WordsFound, judge_open_words
from eval.evaluators.retrieval import neighbours, precision, recall
from eval.evaluators.sweep import SWEEP, Point, match_sizes, sweep_penalties
from eval.evaluators.worth import Compact, Judge, Worth, judge_compact, reconstruct

__all__ = [
    "CASES",
    "FACTORIES",
    "SWEEP",
    "Accuracy",
    "Baseline",
    "Baselines",
    "Case",
    "CodeFigures",
    "Compact",
    "ConceptAccuracy",
    "Corruptions",
    "Example",
    "Examples",
    "Judge",
    "LeftOut",
    "Memory",
    "OpenWords",
    "Picture",
    "Point",
    "Share",
    "WordsFound",
    "Worth",
    "accuracy_of",
    "judge_baselines",
    "code_figures",
    "judge_compact",
    "concept_accuracy",
    "judge_corrupted",
    "draw_examples",
    "match_sizes",
    "mcnemar",
    "memory_of",
    "neighbours",
    "judge_open_words",
    "precision",
    "predicted",
    "recall",
    "reconstruct",
    "sweep_penalties",
]
