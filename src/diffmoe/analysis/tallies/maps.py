"""Which experts took which patch of a few images, along sampling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int, Int32, UInt8
from torch import Tensor

from diffmoe.analysis.findings import TokenMaps
from diffmoe.analysis.tallies.archive import Described
from diffmoe.analysis.tallies.numbers import total_bytes
from diffmoe.analysis.tallies.observed import Observed
from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError

__all__ = ["MapTally"]

_SLACK = 0.01  # of the spacing of the grid: DDPM rounds its levels to whole steps
_NOT_YET = -1


@dataclass
class MapTally:
    """Maps of the images `shown`, at the first evaluation that reaches each level of a grid.

    Tokens are patches in the order of rows of the image.
    """

    shown: Int[np.ndarray, "I"]  # numbers among all images of the run
    grid: Float[np.ndarray, "F"]  # noise levels, falling from 1
    labels: Int[np.ndarray, "I"]
    evaluations: Int[np.ndarray, "I"]
    counts: Int32[np.ndarray, "I L E T"]
    step: Int32[np.ndarray, "I F"]
    level: Float[np.ndarray, "I F"]
    x: Float16[np.ndarray, "I F C H W"]
    packed: UInt8[np.ndarray, "I F L T bytes"]  # a bit for each expert, the first highest

    @classmethod
    def empty(cls, config: RunConfig, shown: Sequence[int], frames: int) -> "MapTally":
        """A tally of as many frames as the solver has steps to show, `frames` at most."""
        model, settings = config.model, config.sampling
        frames = frames if settings.sampler == "dopri5" else min(frames, settings.steps)
        images, layers, experts = len(shown), len(model.moe_blocks), model.router.num_experts
        side = model.input_size
        return cls(
            shown=np.array(shown, np.int64),
            grid=np.linspace(1, 0, frames + 1)[:-1],
            labels=np.full(images, _NOT_YET, np.int64),
            evaluations=np.zeros(images, np.int64),
            counts=np.zeros((images, layers, experts, model.tokens), np.int32),
            step=np.full((images, frames), _NOT_YET, np.int32),
            level=np.zeros((images, frames)),
            x=np.zeros((images, frames, model.channels, side, side), np.float16),
            packed=np.zeros((images, frames, layers, model.tokens, -(-experts // 8)), np.uint8),
        )

    def see(self, seen: Observed) -> None:
        """Take in one evaluation, if it holds an image to show."""
        here = (self.shown >= seen.images.start) & (self.shown < seen.images.stop)
        places = here.nonzero()[0]
        if not len(places):
            return
        rows = self.shown[places] - seen.images.start
        index = torch.from_numpy(rows).to(seen.chosen.device)
        chosen = seen.chosen[:, index].transpose(0, 1).cpu().numpy()
        self.labels[places] = seen.labels[rows]
        self.evaluations[places] += 1
        self.counts[places] += chosen.transpose(0, 1, 3, 2)
        due = (self.step[places] == _NOT_YET) & (seen.level <= self.grid + _SLACK / len(self.grid))
        if due.any():
            self._keep(seen, places, due, seen.x[index], chosen)

    def _keep(
        self,
        seen: Observed,
        places: Int[np.ndarray, "k"],
        due: Bool[np.ndarray, "k F"],
        x: Float[Tensor, "k C H W"],
        chosen: Bool[np.ndarray, "k L T E"],
    ) -> None:
        """Fill the frames that are due."""
        image, frame = due.nonzero()
        here = (places[image], frame)
        self.step[here], self.level[here] = seen.step, seen.level
        self.x[here] = x.to(torch.float16).cpu().numpy()[image]
        self.packed[here] = np.packbits(chosen, axis=-1)[image]

    def maps(
        self, names: list[str], images: UInt8[np.ndarray, "I C H W"], decode: Callable[..., Tensor]
    ) -> TokenMaps | None:
        """The finding, with the images as drawn; None if none is shown.

        Raises ConfigError if an image to show was not drawn, or `images` are not as many.
        """
        if not len(self.shown):
            return None
        self._refuse(len(images))
        experts = self.counts.shape[2]
        number = np.unpackbits(self.packed, axis=-1, count=experts).sum(axis=-1).mean(axis=2)
        noisy = np.asarray(decode(torch.from_numpy(self.x).flatten(0, 1).float()))
        return TokenMaps(
            labels=self.labels.tolist(),
            names=[names[label] for label in self.labels],
            images=np.asarray(images),
            noisy=noisy.reshape(*self.step.shape, *noisy.shape[1:]),
            steps=self.step[0].astype(np.int64),
            level=self.level.mean(axis=0),
            number=number,
            share=self.counts / self.evaluations[:, None, None, None],
        )

    def _refuse(self, images: int) -> None:
        missing = self.shown[(self.step == _NOT_YET).any(axis=1)]
        if len(missing):
            raise ConfigError(
                f"shown image {missing[0]} was not drawn", remedy="show images of the request"
            )
        if images != len(self.shown):
            raise ConfigError(
                f"{images} images are given, {len(self.shown)} are shown",
                remedy="give the images that are shown, in their order",
            )

    def arrays(self) -> dict[str, Described]:
        """What is written down."""
        frame, patches = "I F", "tokens are patches, row by row of the image"
        return {
            "shown": Described(self.shown, "I", "", "number of each image shown, in the request"),
            "shown_labels": Described(self.labels, "I", "", "its class"),
            "shown_evaluations": Described(
                self.evaluations, "I", "evaluations", "evaluations of the field for each image"
            ),
            "shown_counts": Described(
                self.counts, "I L E T", "evaluations", f"in which the expert took it; {patches}"
            ),
            "frame_grid": Described(self.grid, "F", "1", "noise levels that frames wait for"),
            "frame_step": Described(self.step, frame, "", "step of each frame; -1 = never reached"),
            "frame_level": Described(self.level, frame, "1", "its noise level"),
            "frame_x": Described(
                self.x, "I F C H W", "model", "the state, in the space of the model"
            ),
            "frame_experts": Described(
                self.packed,
                "I F L T bytes",
                "bits",
                f"whether each expert took it, a bit each, the first expert highest; {patches}",
            ),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return total_bytes(self.arrays())
