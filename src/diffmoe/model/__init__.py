"""Room 2: tokens to prediction, mathematics only."""

from diffmoe.model.condition import Condition, Conditioning, some_conditions
from diffmoe.model.counts import (
    ParameterCounts,
    activated_parameters,
    count_parameters,
)
from diffmoe.model.dit import DiT, MixtureOfExperts, Prediction, build_model, empty_model
from diffmoe.model.experts import Experts, counts_stay_on_device
from diffmoe.model.flops import Flops, count_flops
from diffmoe.model.layers import FeedForward, linear_high
from diffmoe.model.precision import cast_for_products
from diffmoe.model.router import ROUTERS, Router, register_router
from diffmoe.model.routers import BatchPoolRouter, ExpertChoiceRouter, TokenChoiceRouter
from diffmoe.model.routing import Peers, Routing, RoutingPlan, capacity_of_images
from diffmoe.model.selection import kth_largest, pairs_of_mask, pool_of_rows, top_pairs
from diffmoe.model.usage import unused_weights

__all__ = [
    "ROUTERS",
    "BatchPoolRouter",
    "Condition",
    "Conditioning",
    "DiT",
    "ExpertChoiceRouter",
    "Experts",
    "FeedForward",
    "Flops",
    "MixtureOfExperts",
    "ParameterCounts",
    "Peers",
    "Prediction",
    "Router",
    "Routing",
    "RoutingPlan",
    "TokenChoiceRouter",
    "activated_parameters",
    "build_model",
    "capacity_of_images",
    "cast_for_products",
    "count_flops",
    "count_parameters",
    "counts_stay_on_device",
    "empty_model",
    "kth_largest",
    "linear_high",
    "pairs_of_mask",
    "pool_of_rows",
    "register_router",
    "some_conditions",
    "top_pairs",
    "unused_weights",
]
