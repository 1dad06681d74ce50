"""Parts of an analysis of a run: what it costs, how fast it is, what a batch of one does to it."""

from diffmoe.experiments.analyze.batch_of_one import batch_of_one
from diffmoe.experiments.analyze.cost import cost_of
from diffmoe.experiments.analyze.timing import seconds_per_image

__all__ = ["batch_of_one", "cost_of", "seconds_per_image"]
