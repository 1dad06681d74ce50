"""The verbs by name: each a thin function of the words behind it."""

from collections.abc import Callable

from diffmoe.cli import drawing, evaluating, preparing, testing, tools, training
from diffmoe.config import nearest
from diffmoe.errors import ConfigError

__all__ = ["VERBS", "verb"]

VERBS: dict[str, tuple[Callable[[list[str]], None], str, str]] = {
    "demo": (training.demo, "", "train on real digits, or on scenes from captions, and report"),
    "train": (training.train, "PRESET|RUN", "train, or go on with a run"),
    "plan": (tools.plan, "PRESET|RUN", "what training needs on so many GPUs: memory, bytes, days"),
    "prepare": (preparing.prepare, "DATA", "encode images or captions once, to train from"),
    "sample": (drawing.sample, "RUN", "draw images of classes or prompts"),
    "report": (drawing.report, "RUN", "sample, score, capacity in short"),
    "analyze": (drawing.analyze, "RUN", "see where compute goes: steps, classes, patches, experts"),
    "sweep": (drawing.sweep, "RUN", "quality against capacity and time, over the whole dial"),
    "evaluate": (
        evaluating.evaluate,
        "RUN|FOLDER|NPZ",
        "FID, precision, recall; scores of prompts; other numbers",
    ),
    "compare": (evaluating.compare, "A.json B.json", "two evaluations, their protocols first"),
    "bench": (tools.bench, "", "measure what it costs beside a dense model, here"),
    "selftest": (testing.selftest, "", "try the promises of reliability on this machine"),
    "convert": (
        tools.convert,
        "FILE|RUN TARGET",
        "read or write checkpoints of the released layout",
    ),
    "presets": (tools.presets, "[NAME]", "list the published models, or print one"),
}


def verb(name: str) -> Callable[[list[str]], None]:
    """The verb of that name; raises ConfigError, naming the nearest, if there is none."""
    if name not in VERBS:
        near = nearest(name, list(VERBS))
        raise ConfigError(
            f"unknown verb {name!r}",
            remedy=f"did you mean {near}?" if near else "see diffmoe --help",
        )
    return VERBS[name][0]
