"""Pools wider than a process: what the parts select together is what one process selects.

Run as a program, this file is one of four real processes (`test_real_processes_agree`).
"""

import copy
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import oracle
import tiny
from diffmoe.config import RouterOptions
from diffmoe.errors import ConfigError
from diffmoe.model import MixtureOfExperts, Peers, Routing, RoutingPlan, kth_largest
from diffmoe.model.routers import _static
from diffmoe.model.routing import poisoned_rows
from diffmoe.model.selection import smallest_gate
from diffmoe.model.wide_pool import Scores, wide_routing

EXACT = {"rtol": 1e-13, "atol": 1e-13}
IMAGES, TOKENS, WIDTH = 8, 4, 8


# --- peers without processes --------------------------------------------------------------------


class SaidError(Exception):
    """A part has said what it has to say and waits for the others."""


@dataclass
class Told:
    """The peers of one part where everybody's word is known, or (None) is still asked for."""

    place: int
    parts: int
    everybody: Tensor | None = None
    own: Tensor | None = None
    calls: int = 0

    def gather(self, own: Tensor) -> Tensor:
        self.own, self.calls = own.clone(), self.calls + 1
        assert not own.requires_grad
        if self.everybody is None:
            raise SaidError
        assert torch.equal(own, self.everybody[self.place])
        return self.everybody


def in_turn(work: Callable[[int, Peers], Routing], parts: int) -> tuple[list[Routing], Tensor]:
    """What each part finds that exchanges exactly once, and what was exchanged."""
    said = [Told(place, parts) for place in range(parts)]
    for peers in said:
        with pytest.raises(SaidError):
            work(peers.place, peers)
    everybody = torch.stack([peers.own for peers in said])
    knowing = [Told(place, parts, everybody) for place in range(parts)]
    found = [work(peers.place, peers) for peers in knowing]
    assert all(peers.calls == 1 for peers in (*said, *knowing))
    return found, everybody


@dataclass
class Table:
    """Where threads that stand for processes lay down what they say."""

    parts: int
    said: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.parts, timeout=30)


@dataclass
class Seat:
    """The peers of one thread."""

    place: int
    table: Table
    calls: int = 0

    @property
    def parts(self) -> int:
        return self.table.parts

    def gather(self, own: Tensor) -> Tensor:
        assert not own.requires_grad
        self.calls += 1
        self.table.said[self.place] = own.clone()
        self.table.barrier.wait()
        everybody = torch.stack([self.table.said[place] for place in range(self.parts)])
        self.table.barrier.wait()
        return everybody


def together(work: Callable[[Seat], Any], parts: int) -> list[Any]:
    """What each of the parts finds, all of them at work at once."""
    table, found, errors = Table(parts), {}, []

    def sit(seat: Seat) -> None:
        try:
            found[seat.place] = work(seat)
        except BaseException as error:
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=sit, args=(Seat(place, table),)) for place in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [found[place] for place in range(parts)]


# --- random pools -------------------------------------------------------------------------------

NAMES = [(0,), (0,), (0, 0), (0, 1), (0, 1, 0), (1, 0, 0), (2, 2, 1), (0, 1, 1)]  # pools of images
LEVELS = torch.tensor([0.0, -0.0, 0.25, 0.5], dtype=torch.float64)
POISONS = [torch.nan, torch.inf, -torch.inf]


@dataclass(frozen=True)
class Case:
    """Scores of all parts of a batch, a part's after the other's, and how to select from them."""

    parts: int
    names: tuple[int, ...]  # pool of each image of a part
    capacity: float
    keep: int  # K of the smallest pool
    affinity: Tensor
    demand: Tensor

    @property
    def poisoned(self) -> Tensor:
        return poisoned_rows(self.affinity, self.demand)

    @property
    def chances(self) -> Tensor:
        return self.demand.sigmoid().masked_fill(self.poisoned[..., None], torch.nan)

    def pools(self, parts: int) -> tuple[tuple[int, ...], ...]:
        plan = RoutingPlan(selection="train", pool_of_image=self.names * parts)
        return plan.pools(len(self.names) * parts)

    def scores(self, place: int) -> Scores:
        own = slice(place * len(self.names), (place + 1) * len(self.names))
        every = (self.affinity, self.demand, self.chances, self.poisoned)
        return Scores(*(values[own] for values in every))

    def whole(self) -> Routing:
        pools = self.pools(self.parts)
        quantile = kth_largest(self.chances, pools, self.capacity)
        rest = (self.poisoned, self.demand, quantile)
        return _static(self.affinity, pools, self.capacity, *rest)

    def part(self, place: int, peers: Peers) -> Routing:
        return wide_routing(self.scores(place), self.pools(1), self.capacity, peers)


def draw(number: int, parts: int | None = None) -> Case:
    """The case of this number; every other one is full of ties, every third has bad rows."""
    chance, generator = random.Random(number), torch.Generator().manual_seed(number)
    parts, names = parts or chance.randint(1, 4), chance.choice(NAMES)
    tokens, experts = chance.randint(1, 6), chance.randint(1, 5)
    shape = (parts * len(names), tokens, experts)
    if number % 2:
        pick = [torch.randint(len(LEVELS), shape, generator=generator) for _ in range(2)]
        affinity, demand = LEVELS[pick[0]], LEVELS[pick[1]]
    else:
        affinity, demand = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
        )
    if number % 3 == 0:
        rows = torch.rand(shape[:2], generator=generator) < chance.choice([0.1, 0.5, 1.0])
        bad, expert = chance.choice([affinity, demand]), chance.randrange(experts)
        bad[..., expert].masked_fill_(rows, chance.choice(POISONS))
    smallest = parts * tokens * min(names.count(name) for name in names)
    keep = chance.choice([1, smallest, chance.randint(1, smallest), chance.randint(1, smallest)])
    dtype = chance.choice([torch.float32, torch.float64])
    capacity = keep * experts / smallest
    return Case(parts, names, capacity, keep, affinity.to(dtype), demand.to(dtype))


def gates(routing: Routing) -> Tensor:
    """The gate of each pair, NaN where there is none."""
    table = torch.full(routing.affinity.shape, torch.nan, dtype=routing.gate.dtype)
    return table.index_put((routing.token, routing.expert), routing.gate)


def differences(found: list[Routing], case: Case, whole: Routing) -> list[str]:
    """In what the parts and the whole differ; bits count."""
    lowest = smallest_gate(whole, len(case.pools(1)))
    pairs = {
        "rows": (torch.cat([own.chosen for own in found]), whole.chosen),
        "gates": (torch.cat([gates(own) for own in found]), gates(whole)),
        "counts": (sum(own.count for own in found), whole.count),
        "sizes": tuple(torch.tensor([[*own.sizes] for own in found]) for _ in "ab"),
    }
    for own in found:
        pairs[f"quantile {own.peers.place}"] = (own.quantile, whole.quantile)
        pairs[f"lowest gate {own.peers.place}"] = (own.lowest_gate, lowest)
        pairs[f"sizes {own.peers.place}"] = (torch.tensor(own.sizes), own.count)
        assert own.rows_per_expert is None and len(own.token) == sum(own.sizes)
    same = {"equal_nan": True, "rtol": 0, "atol": 0}
    return [
        name
        for name, (mine, wanted) in pairs.items()
        if mine.shape != wanted.shape or not torch.allclose(mine, wanted, **same)
    ]


def by_loops(case: Case) -> list[set[int]]:
    """The rows each expert takes of the whole batch, by a sort of Python."""
    sound = case.affinity.masked_fill(case.poisoned[..., None], -torch.inf).flatten(0, 1).tolist()
    taken: list[set[int]] = [set() for _ in sound[0]]
    members = oracle.rows_of_pools(list(case.names * case.parts), case.affinity.shape[1])
    fewest = min(map(len, members))
    for index, rows in enumerate(taken):
        for pool in members:
            column = [row[index] for row in sound]
            rows.update(oracle.best(pool, column, len(pool) * case.keep // fewest))
    return taken


def mismatches(numbers: range) -> list[tuple[int, list[str]]]:
    """The cases among these whose parts differ from the whole."""
    wrong = []
    for number in numbers:
        case = draw(number)
        whole = case.whole()
        found, _ = in_turn(case.part, case.parts)
        different = differences(found, case, whole)
        if number % 20 == 0:
            chosen = torch.cat([own.chosen for own in found]).t()
            rows = [set(column.nonzero().flatten().tolist()) for column in chosen]
            different += ["loops"] * (rows != by_loops(case))
        wrong += [(number, different)] if different else []
    return wrong


@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_random_pools_are_selected_exactly(block: int) -> None:
    assert not mismatches(range(block * 1000, (block + 1) * 1000))


def test_the_random_pools_hold_what_they_are_to_hold() -> None:
    cases = [draw(number) for number in range(500)]
    wholes = [len(case.names) * case.parts * case.affinity.shape[1] for case in cases]
    one_pool = [case for case in cases if len(case.pools(1)) == 1]
    assert {case.parts for case in cases} == {1, 2, 3, 4}
    assert sum(case.keep == 1 for case in cases) > 50
    assert sum(case.capacity == case.affinity.shape[2] for case in cases) > 50
    assert sum(bool(case.poisoned.any()) for case in cases) > 100
    assert any(bool(case.poisoned.all()) for case in cases) and one_pool and max(wholes) > 60


def test_candidates_alone_are_exchanged() -> None:
    """Of R rows min(K, R) values of each expert, for affinity and demand; sorted, and no rows."""
    for number in range(0, 300, 3):
        case = draw(number)
        _, everybody = in_turn(case.part, case.parts)
        experts, tokens = case.affinity.shape[2], case.affinity.shape[1]
        rows = [len(pool) * tokens for pool in case.pools(1)]
        fewest = min(rows)
        sent = [min(own, own * case.keep // fewest) for own in rows]
        assert everybody.shape == (case.parts, 2 * experts * sum(sent))


# --- whole layers -------------------------------------------------------------------------------


def layer_of(router: RouterOptions) -> MixtureOfExperts:
    return tiny.layer(router, pool_images=IMAGES)


def rows_of_all(layer: MixtureOfExperts, lonely: bool) -> Tensor:
    """Rows; `lonely` ones are wanted by the experts only where they are of the first images."""
    if not lonely:
        return tiny.normals(IMAGES, TOKENS, WIDTH, seed=7)
    wanted = 5 * torch.eye(4, dtype=torch.float64).repeat(2, 1)
    first = wanted @ torch.linalg.pinv(layer.router.weight.detach()).t()
    x = 0 * tiny.normals(IMAGES, TOKENS, WIDTH)
    x[:2] = first.view(2, TOKENS, WIDTH)
    return x


@dataclass
class Learnt:
    """What one process makes of its part of a batch."""

    output: Tensor
    losses: dict[str, float]
    grads: dict[str, Tensor]
    statistics: dict[str, Tensor]
    sizes: tuple[int, ...] | None


def learn(
    layer: MixtureOfExperts, x: Tensor, names: tuple[int, ...], peers: Peers | None = None
) -> Learnt:
    """Forward and backward of the images that are a process's own."""
    place, parts = (peers.place, peers.parts) if peers else (0, 1)
    own = slice(place * len(x) // parts, (place + 1) * len(x) // parts)
    layer, mine = copy.deepcopy(layer), x[own].clone().requires_grad_()
    plan = RoutingPlan(selection="train", pool_of_image=names[own], peers=peers)
    output, routing = layer(mine, plan)
    losses = layer.router.losses(routing)
    direction = tiny.normals(*x.shape, seed=3)[own]
    ((output * direction).sum() + 3 * sum(losses.values()) / parts).backward()
    grads = {"x": mine.grad} | {name: p.grad for name, p in layer.named_parameters()}
    statistics = layer.router.statistics(routing)
    told = {name: value.item() for name, value in losses.items()}
    return Learnt(output.detach(), told, grads, statistics, routing.sizes)


def assert_same(found: list[Learnt], whole: Learnt) -> None:
    """The sums and means over parts are what one process finds, to 1e-13."""

    def close(name: str, mine: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(mine, wanted, **EXACT, msg=lambda m: f"{name}: {m}")

    close("output", torch.cat([own.output for own in found]), whole.output)
    for name, value in whole.losses.items():
        mean = sum(own.losses[name] for own in found) / len(found)
        close(name, torch.tensor(mean), torch.tensor(value))
    for name, wanted in whole.grads.items():
        grads = [own.grads[name] for own in found]
        assert all(grad is not None for grad in grads), name
        close(name, torch.cat(grads) if name == "x" else sum(grads), wanted)
    for name, wanted in whole.statistics.items():
        times = len(found) if name in ("pools", "quantile", "gate_quantile") else 1
        close(name, sum(own.statistics[name] for own in found), times * wanted)


LAYERS = {
    "batch pool": tiny.batch_pool(4),
    "few rows": tiny.batch_pool(4, 0.5),
    "many rows": tiny.batch_pool(4, 3.0),
    "every row": tiny.batch_pool(4, 4.0),
    "token choice": tiny.token_choice(4),
    "two of four": tiny.token_choice(4, 2),
}
SHARES = {
    2: [(0,) * 8, (0, 0, 1, 1) * 2, (0, 1, 1, 0) * 2, (0, 1, 1, 1) * 2],
    4: [(0,) * 8, (0, 1) * 4],
}
EVERY_SHARE = [(parts, names) for parts, shares in SHARES.items() for names in shares]


@pytest.mark.parametrize(("parts", "names"), EVERY_SHARE)
@pytest.mark.parametrize("router", LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_learns_the_same(router: RouterOptions, parts: int, names) -> None:
    layer = layer_of(router)
    x = rows_of_all(layer, lonely=False)
    whole = learn(layer, x, names)
    found = together(lambda seat: learn(layer, x, names, seat), parts)
    assert_same(found, whole)


@pytest.mark.parametrize("parts", [2, 4])
def test_thresholds_move_as_those_of_one_process(parts: int) -> None:
    layer = layer_of(tiny.batch_pool(4))
    x, names = rows_of_all(layer, lonely=False), (0,) * IMAGES
    found = together(lambda seat: learn(layer, x, names, seat), parts)
    total = {name: sum(own.statistics[name] for own in found) for name in found[0].statistics}
    here, there = copy.deepcopy(layer.router), copy.deepcopy(layer.router)
    here.update(learn(layer, x, names).statistics)
    there.update(total)
    assert not torch.equal(here.threshold, layer.router.threshold)
    for mine, wanted in zip(there.buffers(), here.buffers(), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_part_without_rows_of_some_or_all_experts_learns_zeros(parts: int) -> None:
    layer = layer_of(tiny.batch_pool(4, 0.25))  # K is 2
    x, names = rows_of_all(layer, lonely=True), (0,) * IMAGES
    found = together(lambda seat: learn(layer, x, names, seat), parts)
    assert_same(found, learn(layer, x, names))
    assert [own.sizes for own in found] == [(2, 2, 2, 2), *[(0, 0, 0, 0)] * (parts - 1)]
    for own in found[1:]:
        assert not own.output.any()
        learning = [name for name, grad in own.grads.items() if grad.any()]
        assert learning and all(name.startswith("router.predictor.") for name in learning)
    x[1] = 0
    x[IMAGES // parts, 0] = x[0, 0]  # the next part has rows of one expert
    found = together(lambda seat: learn(layer, x, names, seat), parts)
    assert_same(found, learn(layer, x, names))
    assert 0 < sum(size == 0 for size in found[1].sizes) < 4


@pytest.mark.parametrize("value", POISONS)
def test_a_row_without_scores_takes_nothing_from_the_other_parts(value: float) -> None:
    layer = layer_of(tiny.batch_pool(4))
    x = rows_of_all(layer, lonely=False)
    x[5, 2] = value
    whole = layer(x, RoutingPlan(selection="train"))[1]

    def route(seat: Seat) -> Routing:
        own = x[seat.place * 2 : (seat.place + 1) * 2]
        return layer(own, RoutingPlan(selection="train", peers=seat))[1]

    found = together(route, 4)
    assert torch.equal(torch.cat([own.chosen for own in found]), whole.chosen)
    assert [int(own.poisoned.sum()) for own in found] == [0, 0, 1, 0]
    assert not whole.chosen[5 * TOKENS + 2].any() and whole.quantile.isfinite().all()


# --- whole networks -----------------------------------------------------------------------------


def network_grads(checkpointing: bool, seat: Seat | None = None) -> tuple[dict[str, Tensor], int]:
    """The gradients of a network with two layers of experts, and how often it exchanged."""
    model = tiny.model(tiny.batch_pool(4), depth=4, pool_images=IMAGES)
    model.activation_checkpointing = checkpointing
    place, parts = (seat.place, seat.parts) if seat else (0, 1)
    own = slice(place * IMAGES // parts, (place + 1) * IMAGES // parts)
    x, t, labels = (values[own] for values in tiny.batch(IMAGES))
    sample = model(x, t, labels, RoutingPlan(selection="train", peers=seat)).sample
    (sample * tiny.normals(IMAGES, *sample.shape[1:])[own]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return grads, seat.calls if seat else 0


@pytest.mark.parametrize("parts", [2, 4])
def test_a_network_learns_the_same_and_recomputed_blocks_ask_again(parts: int) -> None:
    wanted, _ = network_grads(False)
    for checkpointing in (False, True):
        found = together(lambda seat, again=checkpointing: network_grads(again, seat), parts)
        assert [calls for _, calls in found] == [4 if checkpointing else 2] * parts
        for name, grad in wanted.items():
            mine = sum(grads[name] for grads, _ in found)
            torch.testing.assert_close(mine, grad, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("selection", ["token", "pool", "gate", "image"])
def test_other_selections_have_no_peers(selection: str) -> None:
    policy = None if selection == "image" else "ema"
    RoutingPlan(selection="train", peers=Told(0, 2))
    with pytest.raises(ConfigError, match=rf"selection {selection} has no pools that go on in"):
        RoutingPlan(selection=selection, policy=policy, peers=Told(0, 2))


def test_a_whole_pool_too_small_is_refused_before_anything_is_exchanged() -> None:
    layer, peers = tiny.layer(tiny.batch_pool(40), pool_images=12), Told(0, 2)
    x = tiny.normals(4, TOKENS, WIDTH)
    with pytest.raises(ConfigError, match=r"a pool of 32 rows is too small for 40 experts"):
        layer(x, RoutingPlan(selection="train", peers=peers))
    assert peers.calls == 0


def test_expert_choice_asks_nobody() -> None:
    layer, peers = tiny.layer(tiny.expert_choice(3)), Told(0, 2)
    x = tiny.normals(4, TOKENS, WIDTH)
    output, routing = layer(x, RoutingPlan(selection="train", peers=peers))
    assert torch.equal(output, layer(x, tiny.TRAIN)[0]) and peers.calls == 0
    assert routing.rows_per_expert == 4 and not layer.router.losses(routing)


# --- real processes -----------------------------------------------------------------------------


@dataclass
class Processes:
    """The peers of a process of a group."""

    group: dist.ProcessGroup

    @property
    def place(self) -> int:
        return dist.get_rank(self.group)

    @property
    def parts(self) -> int:
        return dist.get_world_size(self.group)

    def gather(self, own: Tensor) -> Tensor:
        everybody = [torch.empty_like(own) for _ in range(self.parts)]
        dist.all_gather(everybody, own, group=self.group)
        return torch.stack(everybody)


def everybody_of(value: object, peers: Processes) -> list:
    found = [None] * peers.parts
    dist.all_gather_object(found, value, group=peers.group)
    return found


def agree(peers: Processes) -> None:
    """Raise AssertionError unless the processes learn and select what one of them alone does."""
    for router in (tiny.batch_pool(4), tiny.token_choice(4, 2)):
        layer = layer_of(router)
        x, names = rows_of_all(layer, lonely=False), (0,) * IMAGES
        found = everybody_of(learn(layer, x, names, peers), peers)
        assert_same(found, learn(layer, x, names))
    for number in range(24):
        case = draw(number, peers.parts)
        own = case.part(peers.place, peers)
        whole = case.whole()
        rows = torch.cat(everybody_of(own.chosen, peers))
        assert torch.equal(rows, whole.chosen) and torch.equal(own.quantile, whole.quantile)


def be_one_of_four(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4, timeout=wait
    )
    pairs = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    agree(Processes(pairs[rank // 2]))
    agree(Processes(dist.group.WORLD))
    dist.destroy_process_group()


def test_real_processes_agree(tmp_path: Path) -> None:
    """Four of them: as two pools of two parts each, then as one of four."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=os.environ | alone,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    try:
        told = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * 4, "\n".join(told)


if __name__ == "__main__":
    be_one_of_four(int(sys.argv[1]), Path(sys.argv[2]))
