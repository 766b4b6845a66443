"""Multi-head attention (section 2.2)."""

import dataclasses
from typing import ClassVar

from t6jax.attention.dense import DenseConfig


@dataclasses.dataclass(frozen=True)
class MHAConfig(DenseConfig):
    """Every head has keys and values of its own."""

    name: ClassVar[str] = "mha"

    @property
    def groups(self) -> int:
        return self.num_heads
