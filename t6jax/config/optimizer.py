"""AdamW and its schedule: OptimizerConfig."""

import dataclasses
from typing import Annotated, ClassVar

from t6jax.errors import InputError
from t6jax.fields import Range, Section

_NOT_NEGATIVE, _FRACTION = Range(low=0), Range(low=0, below=1)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW with a linear warm-up and a cosine decay (section J.1)."""

    section: ClassVar[str] = "optimizer"

    learning_rate: Annotated[float, _NOT_NEGATIVE, "Peak of the schedule."] = 6e-4
    min_learning_rate: Annotated[float, _NOT_NEGATIVE, "From the end of the decay on."] = 3e-5
    warmup_steps: Annotated[int, Range(low=0), "Steps of the linear rise from 0."] = 2000
    decay_steps: Annotated[
        int, Range(low=0), "Step at which the cosine decay ends, the warm-up included; 0: steps."
    ] = 0
    beta_1: Annotated[float, _FRACTION, "Decay of AdamW's first moment."] = 0.9
    beta_2: Annotated[float, _FRACTION, "Decay of AdamW's second moment."] = 0.95
    epsilon: Annotated[float, Range(above=0), "AdamW's epsilon."] = 1e-8
    weight_decay: Annotated[float, _NOT_NEGATIVE, "AdamW's decay, of every parameter."] = 0.1
    clip_norm: Annotated[float, Range(above=0), "Global norm that gradients are clipped to."] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.min_learning_rate > self.learning_rate:
            raise InputError(
                f"optimizer.min_learning_rate={self.min_learning_rate:g} must be at most "
                f"optimizer.learning_rate={self.learning_rate:g}: lower it"
            )
