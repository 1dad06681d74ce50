"""An exact judge of pictures of scenes, by GenEval's rule and by a strict one."""

from diffmoe.evaluation.judge.mutations import mutations
from diffmoe.evaluation.judge.reading import KNOWN, Reading, Seen, read_picture, read_pictures
from diffmoe.evaluation.judge.segmentation import object_pixels
from diffmoe.evaluation.judge.table import TaskScore, TaskTable, tabulate
from diffmoe.evaluation.judge.verdict import Verdict, judge, judge_pictures

__all__ = [
    "KNOWN",
    "Reading",
    "Seen",
    "TaskScore",
    "TaskTable",
    "Verdict",
    "judge",
    "judge_pictures",
    "mutations",
    "object_pixels",
    "read_picture",
    "read_pictures",
    "tabulate",
]
