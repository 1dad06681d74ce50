"""Does a DiffMoE follow captions better than a dense model and expert choice, at equal work?

python benchmarks/text_to_image.py --out docs/results/text-to-image

Trains each model on scenes with each seed: the same pictures, captions, times and noise in the
same order, as many steps, as many activated parameters. Each is then judged on prompts of pairs of
shape and colour that training had, and of pairs that it had not. It can be stopped at any moment
and goes on with the same command; any number of processes that run it share the work.
"""

import argparse
import json
import math
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from tqdm import tqdm

from diffmoe.analysis.figures.canvas import add_foot, legend_below, save, series, sheet
from diffmoe.checkpoint import Parts, load, read_metrics, write_text
from diffmoe.config import RunConfig, to_dict
from diffmoe.data import TASKS, ScenesSource
from diffmoe.device import machine_of, resolve_device
from diffmoe.experiments import evaluate
from diffmoe.experiments.loss import DenoisingLoss
from diffmoe.model import activated_parameters, count_parameters
from diffmoe.presets import preset
from diffmoe.training import train

ARMS = {"dense": "scenes-dense", "expert choice": "scenes-ec", "DiffMoE": "scenes-diffmoe"}
OURS = "DiffMoE"
SPLITS = {"validation": "pairs seen in training", "held_out": "pairs never seen"}
RULES = {"geneval": "GenEval's rule", "strict": "and nothing else in the picture"}
RESULT = "result.json"
LEVEL = 0.95  # of intervals over seeds

PAGE = (
    "The paper reports that DiffMoE follows captions better than a dense model of as many activated"
    " parameters (GenEval 0.44 against 0.38, Table 7). Here both, and expert choice in each image,"
    " draw [scenes](../../scenes.md) from captions: the same pictures, captions, times and noise in"
    " the same order, {steps:,} steps, seeds {seeds}. It counts against the claim if the dense"
    " model's score or validation loss is as good. DiffMoE is called better only where the interval"
    " of the paired differences over seeds leaves 0 out, on the validation loss, and the overall"
    " score on pairs seen in training has the same sign in all seeds."
)

Values = dict[str, list[float]]  # of an arm, each number by seed


def config_of(arm: str, seed: int, words: argparse.Namespace) -> RunConfig:
    """The run of an arm and a seed."""
    found = preset(ARMS[arm])
    loop, training = found.loop, replace(found.training, seed=seed)
    if words.steps:
        loop = replace(loop, steps=words.steps)
        training = replace(training, decay_steps=max(words.steps, training.warmup_steps + 1))
    machine = replace(found.machine, device=words.device)
    return replace(found, loop=loop, training=training, machine=machine)


def done(arm: str, seed: int, aside: Path, words: argparse.Namespace) -> None:
    """Train and judge one run, and write what was seen."""
    config, path = config_of(arm, seed, words), words.runs / f"{arm.replace(' ', '-')}-{seed}"
    began = time.process_time()
    train(config, path)
    seconds = time.process_time() - began
    found = evaluate(path, network="judge", count=words.count, device=words.device)
    run = load(path, device=resolve_device(words.device))
    source = ScenesSource(config.data.seed, count=words.images, split="validation")
    fixed = DenoisingLoss.of(run, source, words.images)
    loss = fixed.under(run.config.sampling)
    lines = read_metrics(path / "metrics.jsonl")
    told = {
        "arm": arm,
        "seed": seed,
        "values": {**found.content["values"], "validation loss": loss},
        "training loss": [(line["step"], line["mse"]) for line in lines],
        "CPU seconds of training, of the last process": seconds,
        "activated": activated_parameters(config.model),
        "parameters": count_parameters(config.model).total,
        "config": to_dict(config),
        "weights_sha256": run.fingerprint,
        "machine": machine_of(resolve_device(words.device)) | {"torch": torch.__version__},
        "commit": commit(),
    }
    (aside / RESULT).write_text(json.dumps(told, default=str))


def commit() -> str:
    """The commit of the code, with a mark where it was changed since."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def all_done(words: argparse.Namespace) -> list[dict[str, Any]]:
    """What each run showed; what is not there yet is done, together with other processes."""
    wanted = [(arm, seed) for seed in words.seeds for arm in reversed(ARMS)]
    keys = [to_dict(config_of(arm, seed, words)) for arm, seed in wanted]
    key = {"runs": keys, "count": words.count, "images": words.images}
    with Parts.opened(words.runs / "results", len(wanted), key, lambda: False) as parts:
        assert parts is not None
        with tqdm(total=len(wanted), desc="runs", unit="run", initial=len(parts.done)) as bar:
            parts.fill(
                lambda number, aside: done(*wanted[number], aside, words),
                lambda there: bar.update(there - bar.n),
            )
        return [json.loads((parts.path(n) / RESULT).read_text()) for n in range(len(wanted))]


def by_arm(results: Sequence[dict[str, Any]]) -> dict[str, Values]:
    """Each number of each arm, seed by seed."""
    found: dict[str, Values] = {arm: {} for arm in ARMS}
    for result in results:
        for name, value in result["values"].items():
            found[result["arm"]].setdefault(name, []).append(value)
    return found


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and half the width of its interval, by Student's t."""
    count, mean = len(differences), statistics.mean(differences)
    if count < 2:
        return mean, math.nan
    spread = statistics.stdev(differences) / math.sqrt(count)
    return mean, float(student.ppf((1 + LEVEL) / 2, count - 1)) * spread


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in words."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def table(found: dict[str, Values], split: str, rule: str) -> list[str]:
    """Scores in per cent by task, mean and deviation over seeds, as lines of Markdown."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for task in (*TASKS, "overall"):
        name = f"{split}/{rule}/{task}"
        if name in found[OURS]:
            cells = " | ".join(spread(values[name]) for values in found.values())
            lines.append(
                f"| `{task}` | {cells} |" if task in TASKS else f"| **{task}** | {cells} |"
            )
    return lines


def compared(found: dict[str, Values]) -> list[str]:
    """DiffMoE less each other arm, paired by seed, as lines of Markdown."""
    others = [arm for arm in found if arm != OURS]
    lines = [f"| | {' | '.join(f'DiffMoE less {arm}' for arm in others)} |"]
    lines += ["|---" * (len(others) + 1) + "|"]
    names = {
        f"{split}/{rule}/overall": f"{SPLITS[split]}, {RULES[rule]}, points"
        for split in SPLITS
        for rule in RULES
    }
    for name, said in {**names, "validation loss": "validation loss, per cent"}.items():
        cells = []
        for arm in others:
            pairs = list(zip(found[OURS][name], found[arm][name], strict=True))
            scale = [1.0 if name in names else b for _, b in pairs]
            mean, half = interval(
                [100 * (a - b) / s for (a, b), s in zip(pairs, scale, strict=True)]
            )
            cells.append(f"{mean:+.2f} ± {half:.2f}")
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return lines


def figure(found: dict[str, Values], path: Path, command: str) -> None:
    """Bars of mean scores by task, a point for each seed."""
    title = "Pictures that are what their caption asks for"
    count = len(next(iter(found[OURS].values())))
    under = (
        f"GenEval's rule and its six tasks on scenes; bars: mean of {count} seeds, points: seeds"
    )
    panels = sheet(title, under, columns=len(SPLITS), width=9.6, height=4.2, sharey=True)[0]
    for axes, (split, said) in zip(panels, SPLITS.items(), strict=True):
        tasks = [t for t in (*TASKS, "overall") if f"{split}/geneval/{t}" in found[OURS]]
        places, width = np.arange(len(tasks)), 0.8 / len(found)
        for index, (arm, values) in enumerate(found.items()):
            scores = np.array([values[f"{split}/geneval/{task}"] for task in tasks])
            at = places + (index - (len(found) - 1) / 2) * width
            colour = series(index)["color"]
            axes.bar(at, 100 * scores.mean(axis=1), width, label=arm, color=colour, alpha=0.55)
            axes.plot(np.repeat(at, scores.shape[1]), 100 * scores.ravel(), "o", ms=3, color=colour)
        axes.set_xticks(places, [task.replace("_", "\n") for task in tasks], fontsize="small")
        axes.set_title(said, fontsize="medium")
    panels[0].set(ylabel="right, %", ylim=(0, 100))
    legend_below(panels[0].figure, *panels[0].get_legend_handles_labels(), len(found))
    add_foot(panels[0].figure, command)
    save(panels[0].figure, path)


def curves(results: Sequence[dict[str, Any]], path: Path, command: str) -> None:
    """The objective's loss while each model learns, mean over seeds."""
    axes = sheet("Training loss", "flow matching, mean over seeds", width=6.4, height=4.0)[0][0]
    for index, arm in enumerate(ARMS):
        lines = np.array([each["training loss"] for each in results if each["arm"] == arm])
        axes.plot(
            lines[0, :, 0], lines[..., 1].mean(axis=0), label=arm, **series(index) | {"marker": ""}
        )
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    legend_below(axes.figure, *axes.get_legend_handles_labels(), len(ARMS))
    add_foot(axes.figure, command)
    save(axes.figure, path)


def told(found: dict[str, Values], results: Sequence[dict[str, Any]], command: str) -> list[str]:
    """The page: what was asked, what was seen, by what rule, and what it cost."""
    seeds = sorted({result["seed"] for result in results})
    steps = results[0]["config"]["loop"]["steps"]
    said_so = PAGE.format(steps=steps, seeds=", ".join(map(str, seeds)))
    lines = [
        "# Text to image: DiffMoE, expert choice and a dense model",
        *("", *wrap(said_so, 110), "", "```", command, "```", ""),
        *("![Scores by task](scores.png)", "", *conclusions(found), ""),
    ]
    for split, said in SPLITS.items():
        for rule, meaning in RULES.items():
            lines += [f"{said}, {meaning}, per cent, mean and deviation over seeds:", ""]
            lines += [*table(found, split, rule), ""]
    lines += ["Paired differences, mean and 95 % interval over seeds:", "", *compared(found), ""]
    return [*lines, *costs(results), "", "![Training loss](loss.png)"]


def conclusions(found: dict[str, Values]) -> list[str]:
    """A sentence for each arm that DiffMoE is held against, by the rule of the page."""
    lines = []
    for arm in found:
        if arm == OURS:
            continue
        pairs = zip(found[OURS]["validation loss"], found[arm]["validation loss"], strict=True)
        mean, half = interval([100 * (a - b) / b for a, b in pairs])
        name = "validation/geneval/overall"
        scores = [a - b for a, b in zip(found[OURS][name], found[arm][name], strict=True)]
        better = mean + half < 0 and min(scores) > 0
        worse = mean - half > 0 and max(scores) < 0
        verdict = "better than" if better else "worse than" if worse else "not told apart from"
        lines.append(
            f"- DiffMoE is **{verdict}** {arm}: validation loss {mean:+.2f} % ± {half:.2f}, overall"
            f" score {', '.join(f'{100 * score:+.1f}' for score in scores)} points, seed by seed."
        )
    return lines


def costs(results: Sequence[dict[str, Any]]) -> list[str]:
    """Parameters and time of each arm, as lines of Markdown."""
    lines = ["| | parameters | activated (Eq. 40) | CPU minutes of training |", "|---|---|---|---|"]
    for arm in ARMS:
        own = [result for result in results if result["arm"] == arm]
        minutes = [each["CPU seconds of training, of the last process"] / 60 for each in own]
        size, used = own[0]["parameters"] / 1e6, own[0]["activated"]["eq40"] / 1e6
        lines.append(f"| {arm} | {size:.2f} M | {used:.2f} M | {statistics.median(minutes):.0f} |")
    where = {
        f"{each['machine']['device_name']}, torch {each['machine']['torch']}" for each in results
    }
    commits = sorted({each["commit"] for each in results})
    return [*lines, "", f"On {'; '.join(sorted(where))}; commit {', '.join(commits)}."]


def main() -> None:
    """Train, judge, print, draw, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/text-to-image"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="optimizer steps; the presets' without")
    parser.add_argument("--count", type=int, default=600, help="pictures of each split")
    parser.add_argument("--images", type=int, default=4096, help="pictures of the validation loss")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder for figures, tables and JSON")
    words = parser.parse_args()
    results = all_done(words)
    found = by_arm(results)
    command = f"python benchmarks/text_to_image.py --out {words.out}"
    report = told(found, results, command)
    print("\n".join(report))
    if words.out:
        words.out.mkdir(parents=True, exist_ok=True)
        figure(found, words.out / "scores.png", command)
        curves(results, words.out / "loss.png", command)
        write_text(words.out / "README.md", "\n".join(report) + "\n")
        content = {"command": command, "runs": results}
        write_text(words.out / "results.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
