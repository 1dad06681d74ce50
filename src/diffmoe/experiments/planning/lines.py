"""A plan as text."""

import shlex
from collections.abc import Iterator, Sequence

from diffmoe.config import ClipEncoder, T5Encoder
from diffmoe.experiments.planning.memory import memory_of, state_bytes
from diffmoe.experiments.planning.plan import PAPER_STEPS, Option, Plan

__all__ = ["command", "plan_lines"]

_GB = 1e9


def plan_lines(plan: Plan, overrides: Sequence[str] = ()) -> list[str]:
    """What a plan says; `overrides` are the words that made its config of `plan.name`."""
    return [
        *_work(plan),
        "",
        *_table(plan),
        "",
        *_advice(plan, overrides),
        "",
        *_memory(plan),
        "",
        *_sent(plan),
        "",
        *_time(plan),
    ]


def _work(plan: Plan) -> Iterator[str]:
    batch, shown = plan.config.training.global_batch, plan.shown
    times = 4 if shown.recompute else 3
    again = ", one of them again in backward" if shown.recompute else ""
    yield f"parameters   {plan.parameters:,}"
    yield f"activated    {plan.activated['eq40']:,.0f} by Eq. 40"
    yield f"             {plan.activated['executed']:,.0f} with routers and predictors whole"
    yield (
        f"operations   {plan.forward / _GB:.4g} G an image forward,"
        f" x {times} = {times * plan.forward / _GB:.4g} G in training{again}"
    )
    yield (
        f"             {shown.operations * plan.machine.gpus / 1e12:.4g} T a step of {batch}"
        f" images, {shown.operations / 1e12:.4g} T a GPU"
    )


def _table(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    width = max(len(each.layout.name) for each in plan.options)
    yield (
        f"{'GB on one GPU':<{width}}  images  passes  again     state    other      all  fits"
        f"  sent GB  s a step"
    )
    for each in plan.options:
        state = state_bytes(plan.config, each.layout) / _GB
        total = each.memory.total / _GB
        sent = sum(one.sent for one in each.traffic) / _GB
        yield (
            f"{each.layout.name:<{width}}  {each.micro_batch:>6}  {each.micro_steps:>6}"
            f"  {_yes(each.recompute):>5}  {state:8.4g} {total - state:8.4g} {total:8.4g}"
            f"  {_yes(each.fits):>4}  {sent:7.3g}  {each.seconds:8.3g}"
        )
    yield (
        f"of {machine.memory / _GB:g} GB, {machine.reserve:.0%} are left to drivers, kernels and"
        " gaps; state: weights, gradients,"
    )
    yield (
        "moments, averages; images: of one pass of one GPU; again: activations are computed again"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _advice(plan: Plan, overrides: Sequence[str]) -> Iterator[str]:
    if plan.chosen is None:
        yield from _lacking(plan)
        return
    layout = plan.chosen.layout.name
    if plan.machine.gpus == 1:
        yield f"recommended: {plan.chosen.micro_batch} images a pass, the most that fit"
    else:
        yield f"recommended: {layout}, the simplest within 2 % of the least time of those that fit"
    yield f"  {command(plan, plan.chosen, overrides)}"


def _lacking(plan: Plan) -> Iterator[str]:
    """What does not fit, and what to change."""
    need, room, config = plan.shown, plan.machine.room, plan.config
    least = f"{need.memory.total / _GB:.4g} GB ({need.layout.name}, {need.micro_batch} images)"
    yield f"does not fit: of {room / _GB:.4g} GB that a step may take, the least takes {least}"
    low = ["--training.precision bfloat16"] * (config.training.precision == "float32")
    wider = ["leave out --machine.micro-batch"] * (config.machine.micro_batch is not None)
    size = need.memory.total / (1 - plan.machine.reserve) / _GB
    more = "more GPUs, which share the weights"
    changes = [f"GPUs of {size:.3g} GB", more, *low, *wider, "a smaller preset"]
    yield f"change: {'; '.join(changes)}"


def command(plan: Plan, option: Option, overrides: Sequence[str] = ()) -> str:
    """What a shell takes to train so."""
    machine, words = plan.machine, [plan.name, *overrides]
    train = " ".join([f"train {shlex.join(words)}", *option.flags])
    if machine.gpus == 1:
        return f"diffmoe {train}"
    nodes, here = -(-machine.gpus // machine.per_node), min(machine.gpus, machine.per_node)
    meet = f"--nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 "
    return f"torchrun {meet * (nodes > 1)}--nproc-per-node {here} -m -- diffmoe {train}"


def _memory(plan: Plan) -> Iterator[str]:
    shown = plan.shown
    parts = {**shown.memory.parts, "all": shown.memory.total}
    parts |= {f"host of a node, {name}": size for name, size in plan.host.items()}
    other = memory_of(plan.config, shown.layout, shown.micro_batch, not shown.recompute)
    without = "kept" if shown.recompute else "computed again"
    width = max(map(len, parts))
    yield f"memory of it, GB: {shown.layout.name}"
    yield from (f"  {name:<{width}} {size / _GB:10.4g}" for name, size in parts.items())
    yield f"  {f'all, if activations were {without}':<{width}} {other.total / _GB:10.4g}"


def _sent(plan: Plan) -> Iterator[str]:
    shown, text = plan.shown, plan.config.text
    if isinstance(text, T5Encoder | ClipEncoder) and text.cache is None:
        yield "  a text encoder that runs beside is not counted: encode captions before, with"
        yield "  `diffmoe prepare DATA --text-encoder NAME`, and set --text.cache"
    if not shown.traffic:
        yield "nothing is sent: there is one process"
        return
    width = max(len(each.name) for each in shown.traffic)
    yield "sent by one GPU in an optimizer step, GB"
    for each in shown.traffic:
        yield f"  {each.name:<{width}} {each.sent / _GB:10.4g}"
    if plan.tokens is not None:
        own = plan.config.training.global_batch // plan.machine.gpus * plan.config.model.tokens
        less = "below" if own < plan.tokens else "above"
        yield (
            f"experts over all GPUs move fewer bytes than copies of them below {plan.tokens:,.0f}"
            f" tokens a GPU and step:"
        )
        yield f"{own:,} are {less}"


def _time(plan: Plan) -> Iterator[str]:
    machine, shown, batch = plan.machine, plan.shown, plan.config.training.global_batch
    yield (
        f"time, assumed: {machine.efficiency:.0%} of {machine.peak / 1e12:.4g} TFLOPS"
        f" ({machine.peak_source}),"
    )
    yield (
        f"  {machine.bandwidth / _GB:g} GB/s a GPU inside of a node of {machine.per_node},"
        f" {machine.network / _GB:g} GB/s between nodes"
    )
    yield (
        f"  compute {shown.compute:.4g} s, communication {shown.communication:.4g} s: a step takes"
        f" {max(shown.compute, shown.communication):.4g} s if one hides"
    )
    yield (
        f"  behind the other, {shown.seconds:.4g} s if not: {batch / shown.seconds:,.0f}"
        " images a second;"
    )
    days = (f"{plan.days(steps):.3g} days to {steps // 1000}K steps" for steps in PAPER_STEPS)
    yield f"  {', '.join(days)}"
