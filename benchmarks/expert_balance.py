"""How even is the work of processes among which experts are spread, by who does the choosing?

python benchmarks/expert_balance.py --out docs/results/expert-balance

Trains digits with the batch pool and with token choice, with its balance loss and without, in one
process. At each step the routing records tell the rows of each expert; dealt to e processes, E / e
neighbouring experts each, they are the rows of a process. A layer takes as long as its slowest
process: the rows of the largest, summed up over layers, over what they would be if all had as many.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffmoe.analysis.figures.canvas import add_foot, legend_below, save, series, sheet
from diffmoe.checkpoint import write_text
from diffmoe.config import RouterOptions, RunConfig, TokenChoice
from diffmoe.data import open_source, stream
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.training import new_state, train_step

NAMES = ("batch pool", "token choice", "token choice without its balance loss")
SUMMARY = (("median", 50), ("95 %", 95), ("largest", 100))  # name, percentile
SMOOTHED = 25  # steps of which a line of the figure shows the mean

Found = dict[str, dict[int, list[float]]]  # who chooses -> processes -> largest over mean, by step


def routers(experts: int) -> dict[str, RunConfig]:
    """The configs to compare, alike but for who chooses."""
    pool, token = preset("digits-diffmoe"), preset("digits-tc")
    balanced = replace(token.model.router, num_experts=experts)
    assert isinstance(balanced, TokenChoice)
    free = replace(balanced, balance_weight=0.0)
    chosen: tuple[tuple[RunConfig, RouterOptions], ...] = (
        (pool, replace(pool.model.router, num_experts=experts)),
        (token, balanced),
        (token, free),
    )
    return {
        name: replace(config, model=replace(config.model, router=router))
        for name, (config, router) in zip(NAMES, chosen, strict=True)
    }


def largest_over_mean(pairs: Sequence[Tensor], processes: int) -> float:
    """What the experts of a step take, all layers, over what they would if processes were even."""
    rows = torch.stack(list(pairs)).double().unflatten(1, (processes, -1)).sum(dim=2)
    return (rows.amax(dim=1).sum() / rows.mean(dim=1).sum()).item()


def trained(config: RunConfig, steps: int, spreads: Sequence[int]) -> dict[int, list[float]]:
    """The imbalance at each step of a training."""
    device, source = torch.device("cpu"), open_source(config)
    state, objective = new_state(config, device), build_objective(config.objective)
    found: dict[int, list[float]] = {processes: [] for processes in spreads}
    batches = islice(stream(config, source, None, first=0, device=device), steps)
    for batch in tqdm(batches, total=steps, disable=None):
        statistics = train_step(state, objective, [batch], config).statistics
        pairs = [layer["pairs"] for layer in statistics]
        for processes, values in found.items():
            values.append(largest_over_mean(pairs, processes))
    return found


def table(found: Found) -> list[dict[str, Any]]:
    """Print median, 95 % and largest of all steps, and return them."""
    heads = "".join(f"{name:>10}" for name, _ in SUMMARY)
    print(f"{'who chooses':<40}{'processes':>10}{heads}")
    rows = []
    for name, spreads in found.items():
        for processes, values in spreads.items():
            told = {word: float(np.percentile(values, share)) for word, share in SUMMARY}
            print(f"{name:<40}{processes:>10}" + "".join(f"{x:>10.3f}" for x in told.values()))
            rows.append({"who": name, "processes": processes} | told)
    return rows


def figure(found: Found, spreads: Sequence[int], path: Path, command: str) -> None:
    """A panel for each number of processes: the imbalance while a model learns."""
    title = "Work of the slowest process that holds experts, over an even share"
    under = f"digits, means of {SMOOTHED} steps; 1 = no process waits for another"
    panels = sheet(title, under, columns=len(spreads), width=8.4, height=3.6, sharey=True)[0]
    for axes, processes in zip(panels, spreads, strict=True):
        for index, name in enumerate(found):
            values = np.asarray(found[name][processes])
            whole = values[: len(values) // SMOOTHED * SMOOTHED].reshape(-1, SMOOTHED)
            steps = SMOOTHED * (np.arange(len(whole)) + 0.5)
            look = series(index) | {"marker": ""}
            axes.plot(steps, whole.mean(axis=1), label=name, **look)
        axes.set_title(f"{processes} processes", fontsize="medium")
        axes.set_xlabel("optimizer step")
    panels[0].set(ylabel="largest over mean", ylim=(0.9, None))
    legend_below(panels[0].figure, *panels[0].get_legend_handles_labels(), len(found))
    add_foot(panels[0].figure, command)
    save(panels[0].figure, path)


def main() -> None:
    """Train, print, draw, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--out", type=Path, help="folder for the figure and JSON")
    words = parser.parse_args()
    torch.set_num_threads(1)
    configs = routers(words.experts)
    found = {
        name: trained(config, words.steps, words.processes) for name, config in configs.items()
    }
    rows = table(found)
    if words.out:
        words.out.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/expert_balance.py --out {words.out}"
        figure(found, words.processes, words.out / "balance.png", command)
        content = {
            "question": "how even the work of processes with experts of their own is",
            "command": command,
            "experts": words.experts,
            "steps": words.steps,
            "torch": torch.__version__,
            "largest over mean": rows,
        }
        write_text(words.out / "balance.json", json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
