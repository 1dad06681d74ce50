"""Room 2: tokens to prediction, mathematics only."""

from diffmoe.model.counts import (
    ParameterCounts,
    activated_parameters,
    count_parameters,
    saved_bytes,
)
from diffmoe.model.dit import DiT, MixtureOfExperts, Prediction, build_model
from diffmoe.model.experts import Experts
from diffmoe.model.routers import ROUTERS, Router
from diffmoe.model.routing import Routing, RoutingPlan, capacity_of_images

__all__ = [
    "ROUTERS",
    "DiT",
    "Experts",
    "MixtureOfExperts",
    "ParameterCounts",
    "Prediction",
    "Router",
    "Routing",
    "RoutingPlan",
    "activated_parameters",
    "build_model",
    "capacity_of_images",
    "count_parameters",
    "saved_bytes",
]
