"""Where compute goes in a run: what is drawn, measured and shown."""

from diffmoe.experiments.analysis.batch_of_one import batch_of_one
from diffmoe.experiments.analysis.cost import cost_of
from diffmoe.experiments.analysis.run import Analysis, analyze
from diffmoe.experiments.analysis.timing import seconds_per_image

__all__ = ["Analysis", "analyze", "batch_of_one", "cost_of", "seconds_per_image"]
