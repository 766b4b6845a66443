"""Everything that defines a training run: RunConfig, whose keys are those of configs/*.py."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar

from t6jax.config.data import VOCABULARIES, DataConfig
from t6jax.config.layout import MeshConfig, ShardingConfig
from t6jax.config.model import ModelConfig
from t6jax.config.optimizer import OptimizerConfig
from t6jax.errors import InputError
from t6jax.fields import Range, Section

_COUNT = Range(low=1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the training state is saved."""

    section: ClassVar[str] = "checkpoint"

    every_steps: Annotated[int, _COUNT, "Steps between checkpoints."] = 1000
    keep: Annotated[int, _COUNT, "The newest checkpoints to keep."] = 3


@dataclasses.dataclass(frozen=True)
class ValidationConfig(Section):
    """When and on how much text the validation loss is taken."""

    section: ClassVar[str] = "validation"

    every_steps: Annotated[int, _COUNT, "Steps between validations."] = 1000
    batches: Annotated[int, _COUNT, "Batches of validation data at most."] = 100
    batch_size: Annotated[int, _COUNT, "Sequences in a validation batch."] = 48


@dataclasses.dataclass(frozen=True)
class LogConfig(Section):
    """What is reported."""

    section: ClassVar[str] = "log"

    every_steps: Annotated[int, _COUNT, "Steps between reports."] = 10
    tensorboard: Annotated[bool, "Write TensorBoard events next to metrics.jsonl."] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A training run. Every value and every pair that must fit is checked when it is made."""

    seed: Annotated[
        int, Range(low=0, high=2**32 - 1), "Of the weights and of the order of the data."
    ] = 0
    steps: Annotated[int, _COUNT, "Steps to train."] = 100_000
    batch_size: Annotated[int, _COUNT, "Sequences in a step."] = 480
    accumulation_steps: Annotated[int, _COUNT, "Micro-batches that a step is taken in."] = 1
    stop_after_not_finite: Annotated[
        int,
        _COUNT,
        "Steps in a row whose loss or gradient is not finite before the run stops; such steps are "
        "not applied.",
    ] = 10
    profile: Annotated[
        str, 'First and last step to trace into the run\'s directory, as "20:24"; "": none.'
    ] = ""
    model: ModelConfig
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def __post_init__(self):
        super().__post_init__()
        warmup, decay = self.optimizer.warmup_steps, self.decay_steps
        if warmup >= decay:
            is_steps = " (which is steps)" if not self.optimizer.decay_steps else ""
            raise InputError(
                f"optimizer.warmup_steps={warmup} must be below optimizer.decay_steps={decay}"
                f"{is_steps}: lower it, for instance --config.optimizer.warmup_steps={decay // 10}"
            )
        traced = self.profiled_steps
        if traced and traced[-1] > self.steps:
            raise InputError(f"profile={self.profile!r} must end at steps={self.steps} or before")

    @property
    def decay_steps(self) -> int:
        """The step at which the learning rate's decay ends."""
        return self.optimizer.decay_steps or self.steps

    @property
    def profiled_steps(self) -> range:
        """The steps to trace: of `profile`, "20:24" (both included) or "20"; none for ""."""
        if not self.profile:
            return range(0)
        found = re.fullmatch(r"(\d+)(?::(\d+))?", self.profile)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last:
            raise InputError(
                f"profile={self.profile!r} must be the first and the last step to trace, as "
                "20:24; steps count from 1"
            )
        return range(first, last + 1)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step trains on."""
        return self.batch_size * self.model.context_length


def check_trainable(config: RunConfig, mesh: Mapping[str, int]) -> None:
    """Raises InputError unless the config can be trained on a mesh of these sizes.

    What RunConfig itself does not check, because a config that is only built or timed need not
    hold to it.
    """
    if config.model.param_dtype != "float32":
        raise InputError(
            f"model.param_dtype must be float32 to train; got {config.model.param_dtype!r}"
        )
    vocabulary = VOCABULARIES.get(config.data.tokenizer, 0)
    if vocabulary > config.model.vocab_size:
        raise InputError(
            f"data.tokenizer={config.data.tokenizer!r} has a vocabulary of {vocabulary}, larger "
            f"than model.vocab_size={config.model.vocab_size}: raise that"
        )
    check_division(config, mesh)


def check_division(config: RunConfig, mesh: Mapping[str, int]) -> None:
    """Raises InputError if rows or tokens do not divide over the mesh: names in one sentence all
    that do not divide, and values that do.
    """
    rows, micro_batches = config.batch_size, config.accumulation_steps
    validation, length = config.validation.batch_size, config.model.context_length
    split, chunks = mesh["data"] * mesh["fsdp"], 2 * mesh["sequence"]
    wrong, instead, more = [], {}, ""
    over = f"must be a multiple of mesh.data x mesh.fsdp = {split}"
    if rows % micro_batches:
        wrong.append(f"batch_size={rows} must be a multiple of accumulation_steps={micro_batches}")
    elif rows // micro_batches % split:
        wrong.append(f"batch_size / accumulation_steps = {rows // micro_batches} {over}")
    if wrong:
        a_device = math.ceil(rows / split)
        # as few micro-batches as leave a device no more rows at a time than all devices had
        fewest = next(
            n
            for n in range(1, a_device + 1)
            if a_device % n == 0 and a_device // n <= max(rows // micro_batches, 1)
        )
        instead |= {"batch_size": a_device * split, "accumulation_steps": fewest}
        if a_device > 1:
            more = (
                f" (accumulation_steps: any divisor of {a_device}; the higher, the less memory is "
                "needed)"
            )
    if validation % split:
        wrong.append(f"validation.batch_size={validation} {over}")
        instead["validation.batch_size"] = math.ceil(validation / split) * split
    if chunks > 2 and length % chunks:
        wrong.append(
            f"model.context_length={length} must be a multiple of 2 x mesh.sequence = {chunks}"
        )
        instead["model.context_length"] = math.ceil(length / chunks) * chunks
    if wrong:
        values = " ".join(f"--config.{key}={value}" for key, value in instead.items())
        raise InputError(f"{'; '.join(wrong)}. Take for instance {values}{more}")
