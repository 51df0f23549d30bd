"""One small file a question: arrays in, a frozen dataclass out. No evaluator knows a store, a file or a command."""

from eval.evaluators.accuracy import Accuracy, Confusion, accuracy_of, confusion, mcnemar, predicted
from eval.evaluators.codes import CodeFigures, Compact, code_figures
from eval.evaluators.compare import Comparison, Difference, compare, fitting
from eval.evaluators.concepts import ConceptAccuracy, Use, concept_accuracy, most_used
from eval.evaluators.corruptions import CASES, Corruptions, judge_corrupted
from eval.evaluators.examples import Example, Examples, Given, Picture, draw_examples
from eval.evaluators.faithful import Curve, Faithfulness, faithfulness
from eval.evaluators.intervals import Estimate, Interval, estimate, means_ci95
from eval.evaluators.judge import METRICS, Hits, Judge, Texts, Worth, reconstruct, row_cosines, unit
from eval.evaluators.memory import Memory, Share, compact_bytes, compacted, memory_of
from eval.evaluators.open_words import OpenWords, judge_open_words
from eval.evaluators.outside import Outside, left_out
from eval.evaluators.retrieval import agreeing, neighbours, recall, shared
from eval.evaluators.stability import CHANGES, STABLE_ON, Stability, judge_stability
from eval.evaluators.sweep import MATCHED, SWEEP, Point, Points, match_sizes, sweep_penalties
from eval.evaluators.truth import Rate, Truth, concept_truth

__all__ = [
    "CASES",
    "CHANGES",
    "MATCHED",
    "METRICS",
    "STABLE_ON",
    "SWEEP",
    "Accuracy",
    "CodeFigures",
    "Compact",
    "Comparison",
    "ConceptAccuracy",
    "Confusion",
    "Corruptions",
    "Curve",
    "Difference",
    "Estimate",
    "Example",
    "Examples",
    "Faithfulness",
    "Given",
    "Hits",
    "Interval",
    "Judge",
    "Memory",
    "OpenWords",
    "Outside",
    "Picture",
    "Point",
    "Points",
    "Rate",
    "Share",
    "Stability",
    "Texts",
    "Truth",
    "Use",
    "Worth",
    "accuracy_of",
    "agreeing",
    "code_figures",
    "compact_bytes",
    "compacted",
    "compare",
    "concept_accuracy",
    "concept_truth",
    "confusion",
    "draw_examples",
    "estimate",
    "faithfulness",
    "fitting",
    "judge_corrupted",
    "judge_open_words",
    "judge_stability",
    "left_out",
    "match_sizes",
    "mcnemar",
    "means_ci95",
    "memory_of",
    "most_used",
    "neighbours",
    "predicted",
    "recall",
    "reconstruct",
    "row_cosines",
    "shared",
    "sweep_penalties",
    "unit",
]
