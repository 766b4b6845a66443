"""Multi-query attention (appendix H.1)."""

import dataclasses
from typing import ClassVar

from t6jax.attention.dense import DenseConfig


@dataclasses.dataclass(frozen=True)
class MQAConfig(DenseConfig):
    """All heads share one head of keys and values."""

    name: ClassVar[str] = "mqa"

    @property
    def groups(self) -> int:
        return 1
