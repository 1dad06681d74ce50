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

from tqdm import tqdm

from diffmoe.checkpoint import RunFolder, abandon_later, newest_good, set_aside_later
from diffmoe.config import RunConfig
from diffmoe.data import Batch, open_source, source_codec, stream
from diffmoe.device import resolve_device
from diffmoe.errors import ConfigError, NonFiniteError, StoppedError
from diffmoe.objective import build_objective
from diffmoe.training.bad_samples import BadSamples
from diffmoe.training.metrics import MetricsFile, Window
from diffmoe.training.resume import STORED, begin
from diffmoe.training.saving import Saver, last_good, refuse_small_disk
from diffmoe.training.state import TrainingState, begin_again, restore
from diffmoe.training.step import train_step
from diffmoe.training.stops import Stop
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
    stop = Stop(max_seconds)
    if path == "":
        raise ConfigError("the run folder has an empty name", remedy="name one, say runs/mine")
    device = resolve_device(config.machine.device)
    folder = RunFolder(Path(path))
    folder.refuse_another(config)
    source = open_source(config)
    codec = source_codec(config, source, device)
    trained_on = {"codec": codec.identity if codec else STORED, "data": source.fingerprint}

    def batches(first: int) -> Iterator[Batch]:
        return stream(config, source, codec, first=first, device=device)

    with folder.locked() as lock:
        state = begin(
            config,
            folder,
            trained_on,
            device,
            accepted=source.class_names if accept_new_data else None,
        )
        if state.step == config.loop.steps:
            folder.claim(config)
            folder.keep_class_names(source.class_names)
            return folder
        refuse_small_disk(config, folder, state)
        coming = [_begun(batches(state.counters.position))]
        folder.claim(config)  # last: a run that cannot begin leaves no trace
        set_aside_later(folder.checkpoints, state.step)
        folder.keep_class_names(source.class_names)
        bad = BadSamples(folder.bad_samples, len(source), _ceiling(config), source.fingerprint)
        saver = Saver(config, folder, lock)
        with Training(config, folder, state, batches, bad, saver, progress) as training:
            training.run(coming.pop(), stop)  # held by nobody else: it ends when the run goes back
    return folder


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
        self._progress = progress
        self._objective = build_objective(config.objective)
        self._window = Window(state)
        self._watch, self._experts = StepWatch(config, folder, state), ExpertWatch()
        if config.machine.compile:
            state.model.compile(fullgraph=True)

    def __enter__(self) -> "Training":
        with ExitStack() as stack:
            lines = MetricsFile(self._folder.metrics, self._state.step, self._config.loop.log_every)
            self._lines = stack.enter_context(closing(lines))
            self._bar = stack.enter_context(
                _bar(self._config, self._folder, self._state.step, self._progress)
            )
            stack.enter_context(self._saver)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def run(self, batches: Iterator[Batch], stop: Stop) -> None:
        """Step until the end; raises StoppedError if asked to stop before it."""
        loop, state = self._config.loop, self._state
        with stop:
            while state.step < loop.steps:
                self._step(batches)
                reason = stop.reason  # asked once: what follows must agree
                last = bool(reason) or state.step == loop.steps
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
                if reason:
                    break
            self._saver.wait()
        if state.step < loop.steps:
            raise StoppedError(
                f"stopped {reason} after step {state.step}, saved",
                where=str(self._folder.path),
                remedy=f"go on with: diffmoe train {shlex.quote(str(self._folder.path))}",
            )

    def _step(self, batches: Iterator[Batch]) -> None:
        self._saver.poll()
        taken = self._config.training.global_batch // self._config.micro_batch
        found = list(itertools.islice(batches, taken))
        for batch in found:
            self._bad.note(batch.replaced)
        step = train_step(self._state, self._objective, found, self._config)
        self._window.add(step)
        self._watch.add(found, step)
        self._bar.update()

    def _log(self) -> None:
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
        found = newest_good(self._folder.checkpoints)
        if met.rewinds >= self._config.loop.rewinds:
            raise self._diverged()
        if found is None:
            begin_again(state, self._config)
        else:
            restore(state, *found)
        self._folder.note_saved(state.step if found else None)
        abandon_later(self._folder.checkpoints, state.step)
        counted = {"bad_steps": met.bad_steps, "spikes": met.spikes, "rewinds": met.rewinds + 1}
        state.counters = replace(state.counters, position=past, **counted)
        _LOG.warning(
            "%d steps in a row were not finite: going on from %s with the data after them",
            *(met.bad_in_a_row, found[0].name if found else "the beginning"),
        )
        self._watch.forget()
        self._lines.go_back(state.step)
        self._bar.reset()
        self._bar.update(state.step)
        return self._batches(past)

    def _diverged(self) -> NonFiniteError:
        counters = self._state.counters
        return NonFiniteError(
            f"the loss or its gradient was not finite in {counters.bad_in_a_row} steps in a row, up"
            f" to step {self._state.step - self._watch.ahead}",
            where=str(self._folder.path),
            remedy="lower training.learning_rate or set training.clip_norm in a new run, or go on"
            f" past these data with --loop.rewinds {counters.rewinds + 1};"
            f" {self._folder.bad_steps.name} names the images; last good checkpoint:"
            f" {last_good(self._folder)}",
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
