"""What a training run is, and which of its fields may change when it is resumed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from diffmoe.config.captions import EncoderConfig, FeatureText, NoEncoder, WordText
from diffmoe.config.checks import Checked, at_least, positive, within
from diffmoe.config.data import CodecConfig, DataConfig
from diffmoe.config.marks import EXTEND, IDENTITY, MACHINE
from diffmoe.config.model import ModelConfig
from diffmoe.config.sampling import SELECTING, SamplingConfig, idle
from diffmoe.errors import ConfigError

__all__ = [
    "DDPMConfig",
    "FlowConfig",
    "LoopConfig",
    "MachineConfig",
    "ObjectiveConfig",
    "RunConfig",
    "TrainingConfig",
]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Checked):
    """Rectified flow: x_t = (1 - t) x_0 + t eps, velocity eps - x_0 (Sec. 4.1, SiT)."""

    group: ClassVar[str] = "objective"
    kind: ClassVar[str] = "flow"
    samplers: ClassVar[tuple[str, ...]] = ("euler", "heun", "dopri5")
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"  # law of t in training
    logit_mean: float = 0.0  # logit_normal: mean of logit(t)
    logit_std: float = 1.0  # logit_normal: standard deviation of logit(t)
    time_scale: float = 1.0  # what the network sees is t * time_scale
    convention: Literal["paper", "released"] = "paper"  # released: time 1 - t, velocity x_0 - eps

    def ranges(self) -> Iterator[ConfigError]:
        """Times can be drawn."""
        yield from positive(self, "logit_std", "time_scale")
        yield from within(-100, 100, self, "logit_mean")


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(Checked):
    """Discrete diffusion with epsilon prediction and a learned-range variance (as DiT)."""

    group: ClassVar[str] = "objective"
    kind: ClassVar[str] = "ddpm"
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim")
    timesteps: int = 1000  # steps of the forward process
    beta_start: float = 1e-4  # variance of its first step
    beta_end: float = 0.02  # variance of its last step
    variational_weight: float = 1.0  # weight of the variational bound in the hybrid loss

    def ranges(self) -> Iterator[ConfigError]:
        """There are steps, and the hybrid loss is a sum."""
        yield from within(2, 10**6, self, "timesteps")
        yield from at_least(0, self, "variational_weight")

    def relations(self) -> Iterator[ConfigError]:
        """Variances rise."""
        if not 0 < self.beta_start <= self.beta_end < 1:
            yield ConfigError(
                f"objective.beta_start {self.beta_start} and objective.beta_end {self.beta_end} are"
                " no rising variances",
                remedy="0 < beta_start <= beta_end < 1",
            )


ObjectiveConfig = FlowConfig | DDPMConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """Optimizer and everything else that shapes the weights."""

    group: ClassVar[str] = "training"
    seed: int = 0  # of initialisation, data order and every draw
    global_batch: int = 256  # images an optimizer step
    learning_rate: float = 1e-4  # peak
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW
    weight_decay: float = 0.0  # AdamW
    warmup_steps: int = 0  # linear warm-up, optimizer steps
    decay_steps: int | None = None  # cosine decay to 0 over so many steps; None = constant
    clip_norm: float | None = None  # global gradient norm allowed; None = no clipping
    ema_decay: float = 0.9999  # decay of the averaged weights
    label_dropout: float = 0.1  # share of classes or captions that are hidden, for guidance
    precision: Literal["float32", "bfloat16"] = "float32"  # dtype of matrix products

    def ranges(self) -> Iterator[ConfigError]:
        """The optimizer can work."""
        yield from within(0, 1, self, "ema_decay", "label_dropout")
        yield from within(0, 2**63 - 1, self, "seed")
        yield from within(1, 10**6, self, "global_batch")
        yield from positive(self, "learning_rate", "clip_norm")
        yield from at_least(0, self, "weight_decay", "warmup_steps")
        if not all(0 <= beta < 1 for beta in self.betas):
            yield ConfigError(
                f"training.betas {self.betas} are not in [0, 1)", remedy="0.9 and 0.999 are usual"
            )

    def relations(self) -> Iterator[ConfigError]:
        """The learning rate falls after it has risen."""
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            yield ConfigError(
                f"training.decay_steps {self.decay_steps} is not more than training.warmup_steps"
                f" {self.warmup_steps}",
                remedy="the decay ends at this step, counted from the first",
            )


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Checked):
    """How long to train and what to write while training."""

    group: ClassVar[str] = "loop"
    steps: int = 700_000  # optimizer steps
    log_every: int = 100  # steps between two lines of metrics
    checkpoint_every: int = 10_000  # steps between two checkpoints
    keep_checkpoints: int = 2  # newest checkpoints kept
    keep_every: int | None = None  # also kept for good: each of so many steps; None = none
    max_bad_in_a_row: int = 10  # steps in a row whose loss or gradient is not finite, then it stops
    rewinds: int = 0  # times that it goes back to a checkpoint instead, past the data that did it
    spike_sigma: float = 6.0  # a loss so many deviations above the usual is noted as a spike

    def ranges(self) -> Iterator[ConfigError]:
        """Something is trained, told and kept."""
        counts = ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every")
        yield from within(1, 10**9, self, *counts, "max_bad_in_a_row")
        yield from within(0, 10**6, self, "rewinds")
        yield from positive(self, "spike_sigma")

    def relations(self) -> Iterator[ConfigError]:
        """What is to be kept for good is saved at all."""
        kept, saved = self.keep_every, self.checkpoint_every
        if kept is not None and kept % saved:
            legal = " or ".join(str(n * saved) for n in (kept // saved, kept // saved + 1) if n)
            yield ConfigError(
                f"loop.keep_every {kept} is not a multiple of loop.checkpoint_every {saved}",
                remedy=f"use {legal}: only checkpoints can be kept",
            )


@dataclass(frozen=True, kw_only=True)
class MachineConfig(Checked):
    """Where and how a run computes."""

    group: ClassVar[str] = "machine"
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    micro_batch: int | None = None  # images a forward pass of one process; None = all at once
    workers: int = 0  # processes that read images
    activation_checkpointing: bool = False  # recompute blocks in backward to save memory
    compile: bool = False  # torch.compile the model
    background_saves: bool = True  # write checkpoints while training goes on; takes a copy's memory
    shard_degree: int | None = 1  # processes that share one copy of the weights; None = all
    expert_degree: int = 1  # processes that share one set of experts
    timeout: float = 600.0  # seconds without an answer after which another process counts as hung

    def ranges(self) -> Iterator[ConfigError]:
        """No machine has more processes."""
        yield from within(0, 1024, self, "workers")
        yield from within(1, 2**16, self, "shard_degree", "expert_degree")
        yield from within(1, 10**6, self, "timeout")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Everything that describes a run; written into its folder."""

    group: ClassVar[str] = ""
    model: Annotated[ModelConfig, IDENTITY]
    objective: Annotated[ObjectiveConfig, IDENTITY]
    data: Annotated[DataConfig, IDENTITY]
    codec: Annotated[CodecConfig, IDENTITY]
    text: Annotated[EncoderConfig, IDENTITY] = field(default_factory=NoEncoder)
    training: Annotated[TrainingConfig, IDENTITY] = field(default_factory=TrainingConfig)
    loop: Annotated[LoopConfig, EXTEND] = field(default_factory=LoopConfig)
    sampling: Annotated[SamplingConfig, EXTEND] = field(default_factory=SamplingConfig)
    machine: Annotated[MachineConfig, MACHINE] = field(default_factory=MachineConfig)

    def relations(self) -> Iterator[ConfigError]:
        """What goes across groups of fields."""
        yield from self._pools()
        yield from self._solver()
        yield from self._selection()
        yield from self._captions()
        channels = self.sampling.guided_channels
        if channels is not None and channels > self.model.channels:
            yield ConfigError(
                f"sampling.guided_channels {channels} is more than model.channels"
                f" {self.model.channels}",
                remedy="leave it out to guide all",
            )

    def _solver(self) -> Iterator[ConfigError]:
        if self.sampling.sampler not in self.objective.samplers:
            yield ConfigError(
                f"sampling.sampler {self.sampling.sampler} does not solve objective"
                f" {self.objective.kind}",
                remedy=f"use one of {', '.join(self.objective.samplers)}",
            )
        if isinstance(self.objective, DDPMConfig):
            if self.model.out_channels != 2 * self.model.channels:
                yield ConfigError(
                    f"model.out_channels {self.model.out_channels} leaves no room for the learned"
                    " variance of objective ddpm",
                    remedy=f"use {2 * self.model.channels}",
                )
            if self.sampling.steps > self.objective.timesteps:
                yield ConfigError(
                    f"sampling.steps {self.sampling.steps} is more than objective.timesteps"
                    f" {self.objective.timesteps}",
                    remedy="a step of sampling is a step of training",
                )

    def _selection(self) -> Iterator[ConfigError]:
        """A setting that the router would ignore is refused: results are stamped with it."""
        known = self.model.router.selections
        if not known:
            yield from idle(self.sampling, SELECTING, f"the router is {self.model.router.kind}")
        if known and self.sampling.selection not in known:
            yield ConfigError(
                f"sampling.selection {self.sampling.selection} is unknown to router"
                f" {self.model.router.kind}",
                remedy=f"use one of {', '.join(known)}",
            )
        asked, experts = self.sampling.capacity, self.model.router.num_experts
        if asked is not None and asked > experts:
            yield ConfigError(
                f"sampling.capacity {asked} is not in (0, {experts}]",
                remedy=f"{experts} is every expert on every token, 1 the work of a dense model",
            )

    def _captions(self) -> Iterator[ConfigError]:
        """What the network reads is what the encoder writes."""
        reads = self.model.text
        fit = {WordText: ("words",), FeatureText: ("t5", "clip")}.get(type(reads), ("none",))
        if self.text.kind not in fit:
            yield ConfigError(
                f"text of kind {self.text.kind} is not what model.text of kind {reads.kind} reads",
                remedy=f"use an encoder of kind {' or '.join(fit)}",
            )
        if not self.model.reads_text:
            yield from idle(self.sampling, ("negative",), "the condition is a class")

    def _pools(self) -> Iterator[ConfigError]:
        pool, batch, micro = self.model.pool_images, self.training.global_batch, self.micro_batch
        if batch % pool:
            legal = " or ".join(
                str(n) for n in (batch // pool * pool, (batch // pool + 1) * pool) if n
            )
            yield ConfigError(
                f"training.global_batch {batch} is not a multiple of model.pool_images {pool}",
                remedy=f"use {legal}",
            )
        elif micro < 1 or batch % micro or (micro % pool and pool % micro):
            sizes = [n for n in range(pool, batch + 1, pool) if batch % n == 0]
            yield ConfigError(
                f"machine.micro_batch {micro} must divide training.global_batch {batch} and be a"
                f" multiple of model.pool_images {pool}",
                remedy=f"use one of {', '.join(map(str, sizes))}, or where several processes hold"
                " the parts of a pool a divisor of it",
            )

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass."""
        chosen = self.machine.micro_batch
        return self.training.global_batch if chosen is None else chosen

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.model.input_size * self.codec.factor
