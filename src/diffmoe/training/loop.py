"""A config to a run folder: read, step, log, save, and go on where the last command stopped."""

import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from diffmoe.checkpoint import RunFolder, prune, write
from diffmoe.config import RunConfig, to_dict
from diffmoe.data import Batch, open_source, source_codec, stream
from diffmoe.device import resolve_device
from diffmoe.errors import ConfigError, NonFiniteError, StoppedError
from diffmoe.objective import build_objective
from diffmoe.training.metrics import MetricsFile, Window
from diffmoe.training.resume import STORED, begin
from diffmoe.training.state import TrainingState, state_parts
from diffmoe.training.step import train_step

__all__ = ["train"]


def train(config: RunConfig, path: Path | str, *, progress: bool = True) -> RunFolder:
    """Train `config` into the run folder `path`, or go on with the run that is there.

    Raises ConfigError if the folder holds another run, StorageError if it holds other things or
    cannot be written, NonFiniteError when the loss is no number, StoppedError when a signal asked
    to stop.
    """
    if path == "":
        raise ConfigError("the run folder has an empty name", remedy="name one, say runs/mine")
    device = resolve_device(config.machine.device)
    folder = RunFolder(Path(path))
    folder.refuse_another(config)
    source = open_source(config)
    codec = source_codec(config, source, device)
    trained_on = {"codec": codec.identity if codec else STORED, "data": source.fingerprint}
    with folder.locked():
        state = begin(config, folder, trained_on, device)
        first = state.step * config.training.global_batch
        batches = stream(config, source, codec, first=first, device=device)
        if state.step < config.loop.steps:
            batches = itertools.chain([next(batches)], batches)
        folder.claim(config)  # last: a run that cannot begin leaves no trace
        folder.keep_class_names(source.class_names)
        if state.step < config.loop.steps:
            _run(config, folder, state, batches, progress)
    return folder


def _run(
    config: RunConfig,
    folder: RunFolder,
    state: TrainingState,
    batches: Iterator[Batch],
    progress: bool,
) -> None:
    objective = build_objective(config.objective)
    if config.machine.compile:
        state.model.compile(fullgraph=True)
    window = Window(len(state.model.moe_layers))
    metrics = closing(MetricsFile(folder.metrics, state.step))
    micro_steps = config.training.global_batch // config.micro_batch
    with (
        _bar(config, folder, state.step, progress) as bar,
        metrics as lines,
        _stop_signals() as stop,
    ):
        while state.step < config.loop.steps:
            window.add(
                *train_step(state, objective, list(itertools.islice(batches, micro_steps)), config)
            )
            bar.update()
            stopping = stop.is_set()  # asked once: what follows must agree
            last = stopping or state.step == config.loop.steps
            if last or state.step % config.loop.checkpoint_every == 0:
                _save(config, folder, state, window)
            if last or state.step % config.loop.log_every == 0:
                _refuse_non_finite(window, folder, state.step)
                values = window.read(state.model, config.training.global_batch)
                lines.write(state.step, values)
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            if stopping:
                break
    if state.step < config.loop.steps:
        raise StoppedError(
            f"stopped by a signal after step {state.step}, saved",
            where=str(folder.path),
            remedy="the same command goes on from here",
        )


def _bar(config: RunConfig, folder: RunFolder, step: int, progress: bool) -> Any:
    """The progress bar; where nobody watches, in a file say, each of its lines stays: few come."""
    return tqdm(
        total=config.loop.steps,
        initial=step,
        desc=f"train {folder.path.name}",
        unit="step",
        disable=not progress,
        mininterval=1.0 if sys.stderr.isatty() else 30.0,
        maxinterval=60.0,
    )


def _save(config: RunConfig, folder: RunFolder, state: TrainingState, window: Window) -> None:
    _refuse_non_finite(window, folder, state.step)
    samples = state.step * config.training.global_batch
    parts = state_parts(state)
    path = write(folder.checkpoints, state.step, samples, parts, to_dict(config), state.trained_on)
    prune(folder.checkpoints, path, config.loop.keep_checkpoints)


def _refuse_non_finite(window: Window, folder: RunFolder, step: int) -> None:
    """Weights that met NaN are never saved, so the last checkpoint is good."""
    if not window.finite():
        kept = sorted(path.name for path in folder.checkpoints.glob("step-*"))
        raise NonFiniteError(
            f"the loss or its gradient is not finite near step {step}",
            where=str(folder.path),
            remedy="lower training.learning_rate or set training.clip_norm"
            f"{' in a new run' if kept else ''}; last good checkpoint:"
            f" {kept[-1] if kept else 'none yet'}",
        )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event set by SIGINT or SIGTERM; a second signal acts as it did before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])
