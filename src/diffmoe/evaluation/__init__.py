"""Room 6: images to numbers."""

from diffmoe.evaluation.frechet import (
    Moments,
    frechet_bias,
    frechet_caution,
    frechet_distance,
    principal_components,
)
from diffmoe.evaluation.inception import Inception, InceptionFeatures
from diffmoe.evaluation.inception_weights import find_inception, load_inception
from diffmoe.evaluation.metrics import Estimate, inception_score, kernel_distance
from diffmoe.evaluation.neighbours import PrecisionRecall, precision_recall
from diffmoe.evaluation.scores import Judge, Neighbours, Scores, nearest_neighbours, score

__all__ = [
    "Estimate",
    "Inception",
    "InceptionFeatures",
    "Judge",
    "Moments",
    "Neighbours",
    "PrecisionRecall",
    "Scores",
    "find_inception",
    "frechet_bias",
    "frechet_caution",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_inception",
    "nearest_neighbours",
    "precision_recall",
    "principal_components",
    "score",
]
