"""The equations of the paper as slow loops in float64: what every fast path is held against.

Nothing here is shared with the package but the names of the weights. A layer is a dictionary of
its parameters, made by `weights_of`; `taken` is, for each expert, the rows it took. Algorithms
and equations are those of arXiv 2503.14487. Axes: S rows, D width, E experts, F hidden width.
"""

import math

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
Taken = list[list[int]]


def weights_of(module: nn.Module) -> Weights:
    """Float64 copies of the parameters, leaves of a graph of their own."""
    return {
        name: parameter.detach().double().clone().requires_grad_()
        for name, parameter in module.named_parameters()
    }


# --- the layer, row by row ----------------------------------------------------------------------


def affinity(weights: Weights, rows: Tensor) -> list[list[Tensor]]:
    """Eq. 4: softmax over the experts of x W_r, one number for each row and expert."""
    table = []
    for row in rows:
        logits = [(row * column).sum() for column in weights["router.weight"]]
        largest = max(logit.item() for logit in logits)
        powers = [torch.exp(logit - largest) for logit in logits]
        table.append([power / sum(powers) for power in powers])
    return table


def demand(weights: Weights, rows: Tensor) -> list[list[Tensor]]:
    """Eq. 10: Linear, SiLU, Linear of rows that pass no gradient on."""
    table = []
    for row in rows.detach():
        hidden = linear(row, weights, "router.predictor.hidden")
        hidden = hidden / (1 + torch.exp(-hidden))
        table.append(list(linear(hidden, weights, "router.predictor.output")))
    return table


def linear(row: Tensor, weights: Weights, name: str) -> Tensor:
    """W x + b."""
    return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]


def expert(weights: Weights, index: int, row: Tensor) -> Tensor:
    """FFN_e: D -> F -> D with the tanh form of GELU."""
    hidden = row @ weights["experts.weight1"][index] + weights["experts.bias1"][index]
    cubic = hidden + 0.044715 * hidden**3
    hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))
    return hidden @ weights["experts.weight2"][index] + weights["experts.bias2"][index]


def mixture(weights: Weights, rows: Tensor, taken: Taken) -> Tensor:
    """Eq. 9: y_s = sum over the experts that took s of affinity[s, e] * FFN_e(x_s); (S, D)."""
    gates = affinity(weights, rows)
    outputs = [0 * row for row in rows]
    for index, chosen in enumerate(taken):
        for row in chosen:
            outputs[row] = outputs[row] + gates[row][index] * expert(weights, index, rows[row])
    return torch.stack(outputs)


# --- who takes which rows -----------------------------------------------------------------------


def rows_of_pools(pool_of_image: list[int], tokens: int) -> list[list[int]]:
    """The rows of each pool, pools in the order of their first image."""
    pools: dict[int, list[int]] = {}
    for image, pool in enumerate(pool_of_image):
        pools.setdefault(pool, []).extend(range(image * tokens, (image + 1) * tokens))
    return list(pools.values())


def best(candidates: list[int], score: list[float], number: int) -> list[int]:
    """The rows with the highest score; ties go to the lower row."""
    return sorted(candidates, key=lambda row: (-score[row], row))[:number]


def column(table: list[list[Tensor]], index: int) -> list[float]:
    """The numbers of one expert."""
    return [row[index].item() for row in table]


def rows_each(rows: int, experts: int, capacity: float) -> int:
    """K = floor(S / E * C), the capacity read as the decimal number it is written as."""
    hundredths = round(capacity * 100)
    return rows * hundredths // (100 * experts)


def top_of_pools(
    scores: list[list[Tensor]], pools: list[list[int]], experts: int, capacity: float
) -> Taken:
    """Alg. 3: each expert takes its top K rows of each pool."""
    taken: Taken = [[] for _ in range(experts)]
    for index in range(experts):
        for pool in pools:
            number = rows_each(len(pool), experts, capacity)
            taken[index] += best(pool, column(scores, index), number)
    return taken


def token_choice(scores: list[list[Tensor]], top_k: int) -> Taken:
    """Each row takes its best experts; ties go to the lower expert."""
    taken: Taken = [[] for _ in scores[0]]
    for row, values in enumerate(scores):
        order = sorted(range(len(values)), key=lambda e: (-values[e].item(), e))
        for index in order[:top_k]:
            taken[index].append(row)
    return taken


def above(scores: list[list[Tensor]], thresholds: Tensor) -> Taken:
    """Selections `token` and `gate`: the rows whose own value is above the expert's threshold."""
    return [
        [row for row, value in enumerate(column(scores, index)) if value > threshold.item()]
        for index, threshold in enumerate(thresholds.double())
    ]


def best_of_demand(
    scores: list[list[Tensor]],
    demands: list[list[Tensor]],
    thresholds: Tensor,
    pools: list[list[int]],
) -> Taken:
    """Alg. 4: as many rows of a pool as demand the expert, the best of them by affinity."""
    wanted = above(sigmoid(demands), thresholds)
    taken: Taken = [[] for _ in wanted]
    for index, rows in enumerate(wanted):
        for pool in pools:
            number = sum(row in rows for row in pool)
            taken[index] += best(pool, column(scores, index), number)
    return taken


def sigmoid(table: list[list[Tensor]]) -> list[list[Tensor]]:
    """1 / (1 + exp(-z)) of every entry."""
    return [[1 / (1 + torch.exp(-value)) for value in row] for row in table]


# --- what is learned and tracked beside ---------------------------------------------------------


def predictor_loss(demands: list[list[Tensor]], taken: Taken) -> Tensor:
    """Eq. 11-13: binary cross-entropy against "expert e took row s", mean over rows and experts."""
    terms = []
    for row, values in enumerate(sigmoid(demands)):
        for index, value in enumerate(values):
            label = row in taken[index]
            terms.append(-torch.log(value) if label else -torch.log(1 - value))
    return sum(terms) / len(terms)


def balance_loss(scores: list[list[Tensor]], taken: Taken, pools: list[list[int]]) -> Tensor:
    """Switch: E * sum over e of (share of the pairs) * (mean affinity), mean over pools."""
    losses = []
    for pool in pools:
        pairs = [sum(row in pool for row in rows) for rows in taken]
        means = [sum(scores[row][index] for row in pool) / len(pool) for index in range(len(taken))]
        shares = [number / sum(pairs) for number in pairs]
        losses.append(len(taken) * sum(f * p for f, p in zip(shares, means, strict=True)))
    return sum(losses) / len(losses)


def kth_largest(scores: list[list[Tensor]], pools: list[list[int]], capacity: float) -> Tensor:
    """The K-th largest value of each expert in each pool, (P, E)."""
    experts = len(scores[0])
    found = []
    for pool in pools:
        number = rows_each(len(pool), experts, capacity)
        values = [[scores[row][index].item() for row in pool] for index in range(experts)]
        found.append([sorted(column, reverse=True)[number - 1] for column in values])
    return torch.tensor(found, dtype=torch.float64)


def tracked(quantiles: list[Tensor], decay: float) -> Tensor:
    """Eq. 17 over steps: tau <- decay * tau + (1 - decay) * mean quantile of the step's pools.

    The first quantile initialises; `quantiles` holds one (P, E) for each step.
    """
    threshold = None
    for quantile in quantiles:
        now = [sum(q.item() for q in values) / len(values) for values in quantile.T]
        if threshold is None:
            threshold = now
        else:
            threshold = [
                decay * tau + (1 - decay) * q for tau, q in zip(threshold, now, strict=True)
            ]
    return torch.tensor(threshold, dtype=torch.float64)
