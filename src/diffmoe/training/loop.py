"""A config to a run folder: read, step, log, save, and go on where the last command stopped."""

import itertools
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffmoe.checkpoint import RunFolder, abandon_later, newest_good, set_aside_later
from diffmoe.config import RunConfig, share_out
from diffmoe.data import Batch
from diffmoe.device import resolve_device
from diffmoe.distributed import Group, announced, joined, refuse_difference, told_by_first
from diffmoe.errors import ConfigError, NonFiniteError, StoppedError
from diffmoe.objective import build_objective
from diffmoe.training.bad_samples import BadSamples
from diffmoe.training.material import Material
from diffmoe.training.metrics import MetricsFile, Window
from diffmoe.training.resume import begin
from diffmoe.training.saving import Saver, last_good, refuse_small_disk
from diffmoe.training.start import refuse_unequal, refuse_unseen
from diffmoe.training.state import TrainingState, begin_again, restore
from diffmoe.training.step import train_step
from diffmoe.training.stops import Stop, reason
from diffmoe.training.watch import ExpertWatch, StepWatch

__all__ = ["train"]

_LOG = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[Batch]]  # the micro-batches from a sample number on


def train(
    config: RunConfig,
    path: Path | str,
    *,
    progress: bool = True,
    max_seconds: float | None = None,
    accept_new_data: bool = False,
) -> RunFolder:
    """Train `config` into the run folder `path`, or go on with the run that is there.

    After `max_seconds` it saves and stops. With `accept_new_data` it goes on with data that are
    not those it began with. Raises ConfigError if the folder holds another run, StorageError if it
    holds other things, is too full or cannot be written, DataError for damaged data,
    NonFiniteError when too many steps in a row are no number, StoppedError when a signal or the
    time asked to stop.
    """
    _, processes = announced()
    stop = Stop(max_seconds, patience=2.0 if processes > 1 else 0.0)
    if path == "":
        raise ConfigError("the run folder has an empty name", remedy="name one, say runs/mine")
    with told_by_first():  # before any waits for others that cannot come
        share_out(config, processes)
    device = resolve_device(config.machine.device)
    folder = RunFolder(Path(path))
    with joined(device, config.machine.timeout) as group:
        _train(config, folder, device, group, stop, progress, accept_new_data)
    return folder


def _train(
    config: RunConfig,
    folder: RunFolder,
    device: torch.device,
    group: Group,
    stop: Stop,
    progress: bool,
    accept_new_data: bool,
) -> None:
    """What `train` does, in a frame of its own: what it holds is let go where it fails."""
    with ExitStack() as stack:
        here = refuse_unequal(config, group, device)
        group.first_says(lambda: folder.refuse_another(config))
        material = Material.of(config, folder, device, group)
        refuse_difference(group, material.identity)

        def batches(first: int) -> Iterator[Batch]:
            return material.batches(here, first, device, group)

        lock = group.first_says(lambda: stack.enter_context(folder.locked()))
        refuse_unseen(folder, lock, group)
        accepted = material.source.class_names if accept_new_data else None
        state = begin(here, folder, material.identity, device, group, accepted=accepted)
        if state.step == config.loop.steps:
            group.first_says(lambda: _claim(config, folder, material))
            return
        coming = [_begun(batches(state.counters.position))]
        group.largest(0)  # a run that cannot begin, here or elsewhere, leaves no trace
        bad = group.first_says(lambda: _settle(config, folder, material, state))
        saver = Saver(config, folder, lock if group.first else None, group)
        with Training(here, folder, state, batches, bad, saver, progress) as training:
            training.run(coming.pop(), stop)  # held by nobody else: it ends when the run goes back


def _settle(
    config: RunConfig, folder: RunFolder, material: Material, state: TrainingState
) -> BadSamples:
    """Make the folder the home of the run; returns the list of what is damaged in its data."""
    refuse_small_disk(config, folder, state)
    _claim(config, folder, material)
    set_aside_later(folder.checkpoints, state.step)
    source = material.source
    return BadSamples(folder.bad_samples, len(source), _ceiling(config), source.fingerprint)


def _claim(config: RunConfig, folder: RunFolder, material: Material) -> None:
    folder.claim(config)
    material.keep_names(folder)


def _begun(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, once the first of them was read."""
    return itertools.chain([next(batches)], batches)


def _ceiling(config: RunConfig) -> float:
    return float(getattr(config.data, "max_bad_share", 0.0))


class Training:
    """A run at work: the state and what is kept open beside it."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        state: TrainingState,
        batches: Batches,
        bad: BadSamples,
        saver: Saver,
        progress: bool,
    ) -> None:
        self._config, self._folder, self._state = config, folder, state
        self._batches, self._bad, self._saver = batches, bad, saver
        self._group = state.network.group
        self._progress = progress and self._group.first
        self._objective = build_objective(config.objective)
        self._window = Window(state)
        self._watch, self._experts = StepWatch(config, folder, state), ExpertWatch()
        if config.machine.compile:
            state.network.compile()

    def __enter__(self) -> "Training":
        with ExitStack() as stack:
            self._lines = self._metrics(stack)
            self._bar = stack.enter_context(
                _bar(self._config, self._folder, self._state.step, self._progress)
            )
            stack.enter_context(self._saver)
            self._open = stack.pop_all()
        return self

    def _metrics(self, stack: ExitStack) -> MetricsFile | None:
        """Where the first process tells of the run."""
        if not self._group.first:
            return None
        lines = MetricsFile(self._folder.metrics, self._state.step, self._config.loop.log_every)
        return stack.enter_context(closing(lines))

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def run(self, batches: Iterator[Batch], stop: Stop) -> None:
        """Step until the end; raises StoppedError if asked to stop before it."""
        loop, state = self._config.loop, self._state
        with stop:
            while state.step < loop.steps:
                asked = self._step(batches, stop)
                last = bool(asked) or state.step == loop.steps
                saving = last or state.step % loop.checkpoint_every == 0
                telling = state.step % loop.log_every == 0
                if saving or telling:
                    self._watch.settle()
                if self._watch.past is not None:
                    batches = self._go_back(self._watch.past)
                    continue
                if telling or last:
                    self._log()
                if telling:
                    self._window.clear()
                if saving:
                    self._saver.save(state)
                if asked:
                    break
            self._saver.wait()
        if state.step < loop.steps:
            stopped = StoppedError(
                f"stopped {reason(asked)} after step {state.step}, saved",
                where=str(self._folder.path),
                remedy=self._how_to_go_on(),
            )
            raise self._group.spoken(stopped)

    def _how_to_go_on(self) -> str:
        if self._group.size > 1:
            return "the same command goes on"
        return f"go on with: diffmoe train {shlex.quote(str(self._folder.path))}"

    def _step(self, batches: Iterator[Batch], stop: Stop) -> int:
        """Do one step; returns what asked any process to stop, 0 if nothing did."""
        self._group.note(f"step {self._state.step + 1}")
        taken = self._config.training.global_batch // self._config.micro_batch // self._group.size
        found = list(itertools.islice(batches, taken))
        step = train_step(self._state, self._objective, found, self._config)
        self._window.add(step)
        replaced = [one for batch in found for one in batch.replaced]
        # Before anything waits for the device: where a process is gone, that would be for ever.
        asked, damaged, failed = self._group.largest(
            stop.asked, len(replaced), int(self._saver.failed)
        )
        if failed:
            self._saver.wait()  # on all of them: whose write fails, all raise
        self._watch.add(found, step)
        self._bar.update()
        if damaged:
            of_all = itertools.chain.from_iterable(self._group.gather(replaced))
            self._group.first_says(lambda: self._bad.note(of_all))
        return asked

    def _log(self) -> None:
        if self._lines is None:
            return
        state, config = self._state, self._config
        self._experts.look(self._window.shares(), state.step)
        values = self._window.read(config.training.global_batch)
        values["bad_steps"] = float(state.counters.bad_steps)
        self._lines.write(state.step, values)
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)

    def _go_back(self, past: int) -> Iterator[Batch]:
        """Return to the last good state, or the beginning; the data from sample `past` on.

        Those lie after what led astray. Raises NonFiniteError if that was done as often as is
        allowed.
        """
        self._saver.wait()
        state, met = self._state, self._state.counters
        found = self._group.first_says(lambda: newest_good(self._folder.checkpoints))
        if met.rewinds >= self._config.loop.rewinds:
            good = self._group.first_says(lambda: last_good(self._folder))
            raise self._group.spoken(self._diverged(good))
        if found is None:
            begin_again(state, self._config)
        else:
            restore(state, *found)
        self._group.first_says(lambda: self._forget(state.step if found else None))
        counted = {"bad_steps": met.bad_steps, "spikes": met.spikes, "rewinds": met.rewinds + 1}
        state.counters = replace(state.counters, position=past, **counted)
        _LOG.warning(
            "%d steps in a row were not finite: going on from %s with the data after them",
            *(met.bad_in_a_row, found[0].name if found else "the beginning"),
        )
        self._watch.forget()
        if self._lines is not None:
            self._lines.go_back(state.step)
        self._bar.reset()
        self._bar.update(state.step)
        return self._batches(past)

    def _forget(self, step: int | None) -> None:
        """Remove checkpoints of the steps after `step`, of all if it is None."""
        self._folder.note_saved(step)
        abandon_later(self._folder.checkpoints, step or 0)

    def _diverged(self, good: str) -> NonFiniteError:
        counters = self._state.counters
        return NonFiniteError(
            f"the loss or its gradient was not finite in {counters.bad_in_a_row} steps in a row, up"
            f" to step {self._state.step - self._watch.ahead}",
            where=str(self._folder.path),
            remedy="lower training.learning_rate or set training.clip_norm in a new run, or go on"
            f" past these data with --loop.rewinds {counters.rewinds + 1};"
            f" {self._folder.bad_steps.name} names the images; last good checkpoint: {good}",
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
