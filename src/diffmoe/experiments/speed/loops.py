"""The paper's Algorithms 3 and 4 written as loops over the experts: the slow side of a benchmark.

They share the weights of the model they stand beside, so both compute one function.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffmoe.model import BatchPoolRouter, DiT, MixtureOfExperts, Routing, RoutingPlan

__all__ = ["LoopMixture", "loop_twin"]


class LoopMixture(MixtureOfExperts):
    """A DiffMoE layer that calls its experts one by one and asks the device for every count."""

    router: BatchPoolRouter

    def __init__(self, layer: MixtureOfExperts) -> None:
        nn.Module.__init__(self)
        self.router, self.experts = layer.router, layer.experts

    def forward(
        self, x: Float[Tensor, "B T D"], plan: RoutingPlan
    ) -> tuple[Float[Tensor, "B T D"], Routing]:
        """The experts' gated sum (Alg. 3 in training, Alg. 4 otherwise) and the record of it."""
        rows = x.flatten(0, 1)
        affinity = self.router.affinity(x).flatten(0, 1)
        demand = self.router.predictor(x).flatten(0, 1)
        output, taken, quantile = torch.zeros_like(rows), [], []
        for expert in range(affinity.shape[1]):
            chosen = self._choose(affinity[:, expert], demand[:, expert], expert, plan)
            answer = self._answer(rows[chosen], expert) * affinity[chosen, expert, None]
            output.index_add_(0, chosen, answer.to(output.dtype))
            taken.append(chosen)
            if plan.selection == "train":
                level = demand[:, expert].detach().sigmoid()
                quantile.append(level.topk(len(chosen)).values[-1])
        return output.view_as(x), _record(taken, affinity, demand, quantile)

    def _choose(
        self,
        affinity: Float[Tensor, "S"],
        demand: Float[Tensor, "S"],
        expert: int,
        plan: RoutingPlan,
    ) -> Int[Tensor, "K"]:
        options = self.router.options
        if plan.selection == "train" or plan.policy == "static":
            taken = int(len(affinity) * options.capacity / options.num_experts)
            return affinity.topk(taken).indices
        thresholds = plan.thresholds
        level = self.router.threshold if thresholds is None else thresholds[self.router.layer]
        wanted = demand.sigmoid() > level[expert]
        if plan.selection == "token":
            return wanted.nonzero()[:, 0]
        return affinity.topk(int(wanted.sum())).indices

    def _answer(self, rows: Float[Tensor, "K D"], expert: int) -> Float[Tensor, "K D"]:
        own = self.experts
        hidden = rows @ own.weight1[expert] + own.bias1[expert]
        hidden = nn.functional.gelu(hidden, approximate="tanh")
        return hidden @ own.weight2[expert] + own.bias2[expert]


def _record(
    taken: list[Tensor], affinity: Tensor, demand: Tensor, quantile: list[Tensor]
) -> Routing:
    token = torch.cat(taken)
    count = torch.tensor([len(chosen) for chosen in taken], device=token.device)
    expert = torch.repeat_interleave(count)
    return Routing(
        token=token,
        gate=affinity[token, expert],
        count=count,
        affinity=affinity,
        demand=demand,
        pool=torch.zeros_like(affinity[:, 0], dtype=torch.int64),
        quantile=torch.stack(quantile)[None] if quantile else None,
    )


def loop_twin(model: DiT) -> DiT:
    """The same network, weights and all, with loops in place of its mixtures; one pool only."""
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for own, block in zip(model.blocks, twin.blocks, strict=True):
        if isinstance(own.feed_forward, MixtureOfExperts):
            block.feed_forward = LoopMixture(own.feed_forward)
    return twin
