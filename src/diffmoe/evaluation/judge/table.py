"""Scores by task, and GenEval's overall score, the mean over tasks."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from diffmoe.data import TASKS
from diffmoe.errors import DataError
from diffmoe.evaluation.judge.verdict import Verdict

__all__ = ["TaskScore", "TaskTable", "tabulate"]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How many pictures of a task are right."""

    task: str
    right: int
    total: int

    @property
    def score(self) -> float:
        """The share of pictures that are right."""
        return self.right / self.total

    @property
    def error(self) -> float:
        """The standard error of the score, taking pictures for independent."""
        return math.sqrt(self.score * (1 - self.score) / self.total)


@dataclass(frozen=True, slots=True)
class TaskTable:
    """Scores of the tasks that were judged, in GenEval's order, and of all pictures and prompts."""

    tasks: tuple[TaskScore, ...]
    prompts: int
    right_prompts: int  # with one right picture or more

    @property
    def overall(self) -> float:
        """GenEval's overall score: the mean over tasks, however many pictures each has."""
        return math.fsum(task.score for task in self.tasks) / len(self.tasks)

    @property
    def overall_error(self) -> float:
        """The standard error of the overall score."""
        return math.hypot(*(task.error for task in self.tasks)) / len(self.tasks)

    @property
    def lines(self) -> tuple[str, ...]:
        """The table in the layout of GenEval's summary."""
        right, total = (sum(getattr(t, of) for t in self.tasks) for of in ("right", "total"))
        return (
            *("Summary", "======="),
            f"Total images: {total}",
            f"Total prompts: {self.prompts}",
            f"% correct images: {right / total:.2%}",
            f"% correct prompts: {self.right_prompts / self.prompts:.2%}",
            *("", "Task breakdown", "=============="),
            *(f"{t.task:<16} = {t.score:.2%} ({t.right} / {t.total})" for t in self.tasks),
            *("", f"Overall score (avg. over tasks): {self.overall:.5f}"),
        )


def tabulate(verdicts: Iterable[Verdict], *, strict: bool = False) -> TaskTable:
    """The table of verdicts by GenEval's rule or the strict one; DataError if there are none."""
    right: dict[str, list[bool]] = {}
    of_prompt: dict[str, bool] = {}
    for verdict in verdicts:
        held = verdict.strict if strict else verdict.lenient
        right.setdefault(verdict.prompt.task, []).append(held)
        name = json.dumps(verdict.prompt.metadata)
        of_prompt[name] = of_prompt.get(name, False) or held
    if not right:
        raise DataError("there are no verdicts to tabulate", remedy="judge some pictures first")
    order = [*TASKS, *sorted(right.keys() - set(TASKS))]
    tasks = (TaskScore(task, sum(right[task]), len(right[task])) for task in order if task in right)
    return TaskTable(tuple(tasks), len(of_prompt), sum(of_prompt.values()))
