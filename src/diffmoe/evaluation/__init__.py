"""Room 6: images to numbers."""

from diffmoe.evaluation.frechet import Moments, frechet_distance, principal_components
from diffmoe.evaluation.scores import Judge, Neighbours, Scores, nearest_neighbours, score

__all__ = [
    "Judge",
    "Moments",
    "Neighbours",
    "Scores",
    "frechet_distance",
    "nearest_neighbours",
    "principal_components",
    "score",
]
