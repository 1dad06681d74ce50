"""Room 4: a config to a run folder."""

from diffmoe.training.loop import train
from diffmoe.training.material import STORED
from diffmoe.training.optimizer import (
    average_weights,
    build_optimizer,
    copy_buffers,
    learning_rate,
)
from diffmoe.training.saving import Saver
from diffmoe.training.state import (
    Counters,
    TrainingState,
    new_state,
    own_tensor,
    restore,
    state_content,
    state_parts,
)
from diffmoe.training.step import Step, make_draws, train_step, training_plan

__all__ = [
    "STORED",
    "Counters",
    "Saver",
    "Step",
    "TrainingState",
    "average_weights",
    "build_optimizer",
    "copy_buffers",
    "learning_rate",
    "make_draws",
    "new_state",
    "own_tensor",
    "restore",
    "state_content",
    "state_parts",
    "train",
    "train_step",
    "training_plan",
]
