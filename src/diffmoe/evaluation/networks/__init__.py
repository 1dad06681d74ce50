"""Networks that turn 8-bit RGB images into features."""

from diffmoe.evaluation.networks.cache import (
    CACHE_VARIABLE,
    cache_folder,
    find_small_network,
    small_network,
)
from diffmoe.evaluation.networks.clip import ClipNetwork, ClipScores, clip_scores, load_clip
from diffmoe.evaluation.networks.dino import DinoNetwork, load_dino
from diffmoe.evaluation.networks.features import BLOCK, FeatureNetwork, Features
from diffmoe.evaluation.networks.inception_network import InceptionNetwork, load_inception_network
from diffmoe.evaluation.networks.recipe import train_small_network
from diffmoe.evaluation.networks.small import SmallNetwork

__all__ = [
    "BLOCK",
    "CACHE_VARIABLE",
    "ClipNetwork",
    "ClipScores",
    "DinoNetwork",
    "FeatureNetwork",
    "Features",
    "InceptionNetwork",
    "SmallNetwork",
    "cache_folder",
    "clip_scores",
    "find_small_network",
    "load_clip",
    "load_dino",
    "load_inception_network",
    "small_network",
    "train_small_network",
]
