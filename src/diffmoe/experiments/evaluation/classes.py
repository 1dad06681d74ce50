"""Classes of samples and of the reference: which lack images, and which number means which."""

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Classes"]

_NAMED = 3  # classes named in a sentence


class Classes:
    """The classes of a set: the numbers of those that have images, and the names of all.

    Sets are matched by name; one whose classes are only numbered goes by the other's numbers.
    """

    def __init__(self, labels: Int[Tensor, " N"] | None, names: tuple[str, ...]) -> None:
        self.present = [] if labels is None else torch.as_tensor(labels).unique().tolist()
        self._names = names

    def missing(self, reference: "Classes") -> str:
        """A caution that classes of the reference have no samples, empty if each has some."""
        lacks = reference._without(self)
        return f"no sample is of {_listed(lacks)}" if lacks else ""

    def unknown(self, reference: "Classes") -> str:
        """A caution that samples are of classes without images in the reference, or empty."""
        lacks = self._without(reference)
        return f"the reference has no image of {_listed(lacks)}, but samples are" if lacks else ""

    def _without(self, other: "Classes") -> list[str]:
        """Classes that have images here and none there; none where either set has no classes."""
        if not self.present or not other.present:
            return []
        there = {other._in(self, number) for number in other.present}
        return [self._name(number) for number in self.present if number not in there]

    def as_in(self, reference: "Classes", labels: Int[Tensor, " N"]) -> Int[Tensor, " N"] | None:
        """Labels by the reference's numbers; None if it does not know all of their classes."""
        table = {number: self._in(reference, number) for number in self.present}
        if None in table.values():
            return None
        return torch.tensor([table[int(label)] for label in labels])

    def _in(self, reference: "Classes", number: int) -> int | None:
        """The reference's number of a class."""
        if self._is_numbered or reference._is_numbered:
            known = not reference._names or number < len(reference._names)
            return number if known else None
        name = self._name(number)
        return reference._names.index(name) if name in reference._names else None

    @property
    def _is_numbered(self) -> bool:
        return all(name == str(number) for number, name in enumerate(self._names))

    def _name(self, number: int) -> str:
        return self._names[number] if number < len(self._names) else str(number)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(repr(name) for name in names[:_NAMED])
    return f"{'class' if len(names) == 1 else 'classes'} {listed}{more}"
