"""Prompts of a run as the conditions that its model reads."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from diffmoe.checkpoint import LoadedRun, RunFolder
from diffmoe.codec import TextEncoder, build_text_encoder, read_prompts
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.sampling.conditions import Conditions, PromptConditions
from diffmoe.sampling.stamp import Origin

__all__ = ["encode_prompts", "kept_captions", "refuse_prompts", "run_encoder", "usual_conditions"]


def encode_prompts(
    run: Origin, prompts: Sequence[str], device: torch.device | str = "cpu"
) -> PromptConditions:
    """The conditions of prompts, and of the negative one that the run's sampling settings name.

    An empty prompt is no condition. Raises ConfigError if the run reads no prompts, its encoder is
    not at hand or is another than that of the training, or a prompt is too long and refused.
    """
    encoder, too_long = run_encoder(run, device), run.config.text.too_long  # type: ignore[union-attr]
    negative = run.config.sampling.negative
    away = read_prompts(encoder, [negative], too_long, "negative prompt") if negative else None
    return PromptConditions(read_prompts(encoder, prompts, too_long, "prompt"), away)


def run_encoder(run: Origin, device: torch.device | str = "cpu") -> TextEncoder:
    """The text encoder of a run; ConfigError if it is not at hand or another than it was."""
    reads, where = run.config.model.text, str(run.folder.path)
    found = build_text_encoder(run.config.text, reads, device, run.folder.words)
    refuse_prompts(run.config)
    assert found is not None  # or it would have no prompts
    trained = run.trained_on.get("text", found.identity)
    if trained != found.identity:
        path = getattr(run.config.text, "path", None)
        raise ConfigError(
            f"the text encoder is not that of the training: {found.identity} now, {trained} then",
            where=where if path is None else path,
            remedy="restore words.txt of the run"
            if path is None
            else "set --text.path of the run to the encoder it was trained with",
        )
    return found


def usual_conditions(run: LoadedRun, settings: SamplingConfig) -> Conditions | None:
    """What a run is tried with where nobody asks for anything: captions kept of its training.

    The negative prompt is that of `settings`. None for a model of classes.
    """
    if not run.config.model.reads_text:
        return None
    captions = kept_captions(run.folder)
    told = replace(run, config=replace(run.config, sampling=settings))
    return encode_prompts(told, captions, run.model.positions.device)


def kept_captions(folder: RunFolder) -> tuple[str, ...]:
    """The captions that a run keeps of its training; ConfigError if there are none."""
    if captions := folder.captions:
        return captions
    raise ConfigError(
        "the run keeps no captions of its training, which are drawn where no prompts are given",
        where=str(folder.path / "captions.txt"),
        remedy="restore the file, or write captions into it, one a line",
    )


def refuse_prompts(config: RunConfig) -> None:
    """Raise ConfigError for a run of classes, which reads no prompts."""
    if not config.model.reads_text:
        raise ConfigError(
            "the run reads no prompts: its condition is a class", remedy="give --labels instead"
        )
