"""The page of a report: its numbers with their meaning, its figures with their captions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmoe.analysis import CapacityTrace, Panel, Table, write_report
from diffmoe.checkpoint import LoadedRun, write_text
from diffmoe.evaluation import Scores
from diffmoe.experiments.evaluation import Evaluated
from diffmoe.experiments.turns import Turns
from diffmoe.model import activated_parameters, count_parameters

__all__ = ["describe", "write_page"]

_CAPTIONS = {
    "samples": ("Samples", "Samples of each class, not chosen: the first seeds."),
    "loss": ("Training loss", "What training minimised; mse is the denoising part alone."),
    "capacity_per_step": (
        "Compute along sampling",
        "Average capacity of the conditional branch at each step; 1 is the work of a dense model.",
    ),
    "capacity_per_class": (
        "Compute by class",
        "Average capacity over all steps of a class's samples, conditional branch.",
    ),
    "tokens_per_expert": (
        "Who does the work",
        "Share of all tokens that each expert took, over all steps and all branches evaluated. A"
        " token may be taken by several experts or by none: the shares of a row add up to its"
        " capacity x 100 %.",
    ),
}
_OF_PROMPTS = {
    "samples": ("Samples", "Samples above their prompts, not chosen: the first seeds."),
    "capacity_per_class": (
        "Compute by prompt",
        "Average capacity over all steps of a prompt's samples, conditional branch.",
    ),
}
_SPLITS = {"validation": "validation", "held_out": "held-out pairs"}
_VERDICTS = (
    "The judge finds the objects in each picture by rule. Right is what GenEval's rule holds for"
    " right: the objects asked for are there. Strict: and nothing else. Held-out pairs of shape and"
    " colour never occur in training; of the tasks that name no colour there are none. ± is one"
    " standard error, pictures taken for independent; where none or all are right it tells nothing."
    " `diffmoe evaluate` draws more of them."
)
_GRID = (
    "A picture each of some held-out prompts: green frames are right by GenEval's rule, red ones"
    " wrong; below the prompt stands what is."
)


def write_page(
    run: LoadedRun,
    trace: CapacityTrace,
    scores: Scores | None,
    unscored: str,
    turns: Turns,
    names: list[str],
    judged: Evaluated | None,
    figures: dict[str, Path],
    facts: dict[str, Any],
    command: str,
) -> Path:
    """Write `report.json` and `report.html` into the run; returns the page."""
    numbers = {**(scores.as_dict() if scores else {}), "capacity": trace.average}
    numbers |= judged.values if judged else {}
    if run.model.moe_layers:
        numbers["capacity_conditional"] = trace.conditional
    if trace.dropped:
        numbers["dropped"] = trace.dropped_share
    listed = dict(enumerate(names))  # what a label of `diffmoe sample` stands for
    content = {
        "scores": numbers,
        "unscored": unscored,
        turns.nouns: listed,
        "stamp": facts,
        "command": command,
    }
    write_text(run.folder.path / "report.json", json.dumps(content, indent=2, default=str))
    rows = _score_rows(scores) if scores else [("scores", "none", f"not scored: {unscored}")]
    rows = _judged_rows(judged) if judged else rows
    told = _CAPTIONS | (_OF_PROMPTS if turns.prompts else {})
    verdicts = _judged_panels(judged, figures) if judged else []
    shown = [Panel(told[n][0], file, told[n][1]) for n, file in figures.items() if n in told]
    return write_report(
        run.folder.path / "report.html",
        title=f"Report of {run.folder.path.resolve().name}",
        summary=f"{describe(run)}, {run.step} steps of training.",
        numbers=[*rows, *_capacity_rows(run, trace), *_incident_rows(run)],
        panels=[*verdicts, *shown],
        stamp=facts,
        command=command,
    )


def describe(run: LoadedRun) -> str:
    """What kind of model a run is, and how large."""
    model = run.config.model
    total = count_parameters(model).total / 1e6
    if not run.model.moe_layers:
        return f"A dense DiT, {total:.2f} M parameters"
    kind = model.router.kind.replace("_", " ")
    article = "An" if kind[0] in "aeiou" else "A"
    return (
        f"{article} {kind} DiT with {model.router.num_experts} experts in"
        f" {len(run.model.moe_layers)} of {model.depth} layers, {total:.2f} M parameters"
    )


def _judged_rows(judged: Evaluated) -> list[tuple[str, str, str]]:
    """The overall score of each split, by GenEval's rule."""
    rows = []
    for split, tables in judged.content["tables"].items():
        own, strict = tables["geneval"], tables["strict"]
        pictures = sum(task["total"] for task in own["tasks"])
        meaning = (
            f"mean over {len(own['tasks'])} tasks of the share of pictures that are true to their"
            f" prompts, by GenEval's rule, on {pictures} pictures of {own['prompts']} prompts;"
            f" {strict['overall']:.1%} with nothing else in the picture"
        )
        value = f"{own['overall']:.1%} ± {own['overall_error']:.1%}"
        rows.append((f"true to the prompt, {_SPLITS[split]}", value, meaning))
    return rows


def _judged_panels(judged: Evaluated, figures: Mapping[str, Path]) -> list[Panel]:
    """The table of tasks, and verdicts at a glance."""
    tables = judged.content["tables"]
    tasks = {task["task"]: "" for told in tables.values() for task in told["geneval"]["tasks"]}
    cells = {
        (task["task"], split, rule): _cell(task)
        for split, of_rule in tables.items()
        for rule, told in of_rule.items()
        for task in told["tasks"]
    }
    columns = [(split, rule) for split, of_rule in tables.items() for rule in of_rule]
    rows = [[task, *(cells.get((task, *column), "") for column in columns)] for task in tasks]
    overall = [_overall(tables[split][rule]) for split, rule in columns]
    names = [_SPLITS[split] + ", strict" * (rule == "strict") for split, rule in columns]
    table = Table(["task", *names], [*rows, ["overall", *overall]])
    panels = [Panel("True to the prompt, by task", None, _VERDICTS, table)]
    if "verdicts" in figures:
        panels.append(Panel("Verdicts on held-out prompts", figures["verdicts"], _GRID))
    return panels


def _cell(task: Mapping[str, Any]) -> str:
    return f"{task['score']:.0%} ± {task['error']:.0%} ({task['right']} / {task['total']})"


def _overall(told: Mapping[str, Any]) -> str:
    return f"{told['overall']:.1%} ± {told['overall_error']:.1%}"


def _score_rows(scores: Scores) -> list[tuple[str, str, str]]:
    known, left_out = scores.held_out_accuracy, scores.left_out
    skipped = ("training images left out", str(left_out), "of the scores, as they are damaged")
    accuracy = "an unknown share" if known is None else f"{known:.1%}"
    return [
        (
            "agreement",
            f"{scores.agreement:.1%}",
            f"of {scores.samples} samples are read as the class asked for, by a classifier"
            f" that reads {accuracy} of held-out real images right",
        ),
        (
            "Frechet distance",
            f"{scores.frechet_distance:.3f}",
            f"to the training images, on {scores.components} components of pixels"
            + (f"; {scores.caution}" if scores.caution else ""),
        ),
        (
            "nearest training image",
            f"{scores.nearest_median:.3f}",
            f"rms, median; real images lie {scores.nearest_median_real:.3f} apart;"
            f" {scores.copies:.1%} of samples are nearer than 99 % of real pairs",
        ),
        *([skipped] if left_out else []),
    ]


def _capacity_rows(run: LoadedRun, trace: CapacityTrace) -> list[tuple[str, str, str]]:
    activated = activated_parameters(run.config.model, trace.average)
    share = trace.dropped_share
    capped = "of what experts asked for, above max_capacity, lowest demand first"
    dropped = [("dropped", f"{share:.2%}", capped)] if share else []
    whole = "average over steps, layers and all branches evaluated; 1 = dense"
    branch = "without the unconditional branch that guidance adds: the average of the figures"
    if trace.is_even:
        branch = "the same at every step and for every class, so no figure shows it"
    conditional = ("capacity, conditional branch", f"{trace.conditional:.3f}", branch)
    return [
        ("capacity", f"{trace.average:.3f}", whole),
        *([conditional] if run.model.moe_layers else []),
        *dropped,
        (
            "activated parameters",
            f"{activated['eq40'] / 1e6:.3f} M",
            f"by Eq. 40; {activated['executed'] / 1e6:.3f} M with routers and predictors whole",
        ),
    ]


def _incident_rows(run: LoadedRun) -> list[tuple[str, str, str]]:
    """What went wrong in the training, where something did."""
    folder, met = run.folder, run.state
    damaged = folder.bad_samples
    listed = damaged.read_bytes().count(b"\n") if damaged.is_file() else 0
    incidents = (
        (
            "steps skipped",
            met.get("bad_steps", 0),
            f"as not finite; their images are in {folder.bad_steps.name}",
        ),
        ("spikes", met.get("spikes", 0), f"losses far above the usual, in {folder.spikes.name}"),
        ("rewinds", met.get("rewinds", 0), "to a checkpoint, past data that were not finite"),
        ("damaged samples", listed, f"others stood for them; they are listed in {damaged.name}"),
    )
    return [(name, f"{count:.0f}", meaning) for name, count, meaning in incidents if count]
