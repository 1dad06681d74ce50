"""What the images of a run are drawn of, in turn, where nobody names it: classes, or prompts."""

from dataclasses import dataclass
from pathlib import Path

from diffmoe.checkpoint import RunFolder
from diffmoe.config import RunConfig, ScenesData
from diffmoe.data import Prompt, make_prompts
from diffmoe.experiments.requests import trained_classes
from diffmoe.sampling import kept_captions

__all__ = ["Turns"]

_TASKS, _DRAWS = 6, 4  # of scenes; images of each prompt, if there are enough
_MOST_OF_TASK = 40  # prompts: more would come twice
_LEAST, _MOST = 6, 240  # prompts of captions that a run keeps


@dataclass(frozen=True)
class Turns:
    """Numbers 0 .. count - 1 have their turn; of a run that reads captions they are prompts."""

    count: int
    prompts: tuple[str, ...] = ()
    scenes: tuple[Prompt, ...] = ()  # the prompts as a judge of scenes takes them

    @classmethod
    def of(cls, path: Path | str, config: RunConfig, images: int | None = None) -> "Turns":
        """The classes that a run was trained on, or prompts for so many images.

        Prompts are those of validation scenes, task after task, where the run's data are scenes,
        else captions that it keeps of its training. Raises ConfigError if it keeps none.
        """
        if not config.model.reads_text:
            return cls(trained_classes(path, config.model.num_classes))
        each = _MOST if images is None else images // _DRAWS
        if isinstance(config.data, ScenesData):
            return cls.of_scenes(max(1, min(_MOST_OF_TASK, each // _TASKS)), "validation")
        kept = kept_captions(RunFolder(Path(path)))[: max(_LEAST, min(_MOST, each))]
        return cls(len(kept), kept)

    @classmethod
    def of_scenes(cls, each: int, split: str) -> "Turns":
        """So many prompts of each task of a split of scenes, one of each task after another."""
        prompts = make_prompts(each, split=split)
        rounds = [prompts[place::each] for place in range(each)]
        scenes = tuple(prompt for one in rounds for prompt in one)
        return cls(len(scenes), tuple(prompt.caption for prompt in scenes), scenes)

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "prompt" if self.prompts else "class"

    @property
    def nouns(self) -> str:
        """What several of them are called."""
        return "prompts" if self.prompts else "classes"
