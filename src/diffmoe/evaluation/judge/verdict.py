"""Whether a picture is true to its prompt, by GenEval's rule and by a strict one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from diffmoe.data import NUMBERS, Clause, Prompt, article, plural
from diffmoe.evaluation.judge.reading import Reading, Seen, read_picture

__all__ = ["Verdict", "judge", "judge_pictures", "stands"]

Image = UInt8[np.ndarray, "3 side side"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge makes of a picture; `reason` is the first thing that is wrong with it.

    A picture that is right by the strict rule has the reason "as asked for".
    """

    lenient: bool
    strict: bool
    reason: str
    prompt: Prompt


def judge(prompt: Prompt, picture: Image | Reading) -> Verdict:
    """The verdict on a picture, or on what was read in it.

    `lenient` is GenEval's rule: each clause of `include` finds its count of things of its shape, of
    which the surest have its colour and stand where it says, and no clause of `exclude` finds its
    count. `strict` wants nothing else in the picture besides: no further thing, and no patch whose
    shape is unknown.
    """
    reading = read_picture(picture) if isinstance(picture, np.ndarray) else picture
    missed = _missed(prompt, reading) or _exceeded(prompt, reading)
    extra = _extra(prompt, reading)
    return Verdict(not missed, not (missed or extra), missed or extra or "as asked for", prompt)


def judge_pictures(prompts: Iterable[Prompt], images: Iterable[Image]) -> Iterator[Verdict]:
    """The verdict on each picture of a prompt, one at a time; ValueError unless as many of both."""
    pairs = zip(prompts, images, strict=True)
    return (judge(prompt, image) for prompt, image in pairs)


def stands(one: Seen, other: Seen, relation: str) -> bool:
    """Whether one thing is `relation` the other: the rule for position.

    Of the differences between centres the larger one, across or down, decides: a thing is left
    of another if it is further to the left than it is above or below. Equal differences are none.
    """
    across, down = one.x - other.x, one.y - other.y
    along, aside = (across, down) if relation.endswith("of") else (down, across)
    ahead = relation in ("right of", "below")
    return abs(along) > abs(aside) and (along > 0) == ahead


def _missed(prompt: Prompt, reading: Reading) -> str:
    """The first clause of `include` that is not met, in words; empty if all are."""
    taken: list[Reading] = []
    for clause in prompt.include:
        shaped = _shaped(clause, reading)
        if len(shaped) < clause.count:
            return f"found {_told(replace(clause, colour=None), len(shaped))}, {_asked(clause)}"
        chosen = shaped[: clause.count]
        other = _miscoloured(clause, chosen)
        if other is not None:
            return (
                f"found {article(f'{other.colour} {other.shape}')}, {clause.colour} was asked for"
            )
        if not _stand(clause, chosen, taken):
            target = prompt.include[clause.target].shape
            return f"no {clause.shape} is {clause.relation} the {target}"
        taken.append(chosen)
    return ""


def _shaped(clause: Clause, reading: Reading) -> Reading:
    """The things of a clause's shape, the surest first."""
    return tuple(seen for seen in reading if seen.shape == clause.shape)


def _miscoloured(clause: Clause, chosen: Reading) -> Seen | None:
    """The first that has not the colour asked for; None if all have."""
    return next((one for one in chosen if clause.colour not in (None, one.colour)), None)


def _stand(clause: Clause, chosen: Reading, taken: list[Reading]) -> bool:
    """Whether all stand as asked for to all things taken for the clause's target."""
    relation = clause.relation
    if relation is None:
        return True
    targets = taken[clause.target]
    return all(stands(one, other, relation) for one in chosen for other in targets)


def _exceeded(prompt: Prompt, reading: Reading) -> str:
    """The first clause of `exclude` that finds its count, in words; empty if there is none."""
    for clause in prompt.exclude:
        found = len(_shaped(clause, reading))
        if found >= clause.count:
            most = clause.count - 1
            told = _told(replace(clause, colour=None), found)
            return f"found {told}, {_number(most)} {_were(most)} asked for"
    return ""


def _extra(prompt: Prompt, reading: Reading) -> str:
    """Something that was not asked for, in words; empty if there is nothing."""
    unknown = [seen for seen in reading if seen.shape is None]
    if unknown:
        return f"found {article(unknown[0].colour)} patch of no known shape"
    asked = sum(clause.count for clause in prompt.include)
    others = [seen for seen in reading if not any(_is_asked(c, seen) for c in prompt.include)]
    if others:
        return f"found {article(f'{others[0].colour} {others[0].shape}')}, which was not asked for"
    if len(reading) > asked:
        return f"found {_number(len(reading))} things, {_number(asked)} {_were(asked)} asked for"
    return ""


def _is_asked(clause: Clause, seen: Seen) -> bool:
    return seen.shape == clause.shape and clause.colour in (None, seen.colour)


def _told(clause: Clause, count: int) -> str:
    """So many things of a clause, in words."""
    shape = clause.shape if count == 1 else plural(clause.shape)
    return " ".join(filter(None, (_number(count), clause.colour, shape)))


def _asked(clause: Clause) -> str:
    return f"{_number(clause.count)} {_were(clause.count)} asked for"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _number(count: int) -> str:
    return {0: "no", **NUMBERS}.get(count, str(count))
