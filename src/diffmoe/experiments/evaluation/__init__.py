"""Images to the numbers of a paper's table, with their protocol, and two of them side by side."""

from diffmoe.experiments.evaluation.comparison import Comparison, compare
from diffmoe.experiments.evaluation.run import evaluate, make_statistics
from diffmoe.experiments.evaluation.written import Evaluated

__all__ = ["Comparison", "Evaluated", "compare", "evaluate", "make_statistics"]
