"""Grouped-query attention (appendix H.2)."""

import dataclasses
from typing import Annotated, ClassVar

from t6jax.attention.dense import DenseConfig
from t6jax.errors import InputError
from t6jax.fields import Range


@dataclasses.dataclass(frozen=True)
class GQAConfig(DenseConfig):
    """num_heads / num_kv_heads query heads share a head of keys and values."""

    name: ClassVar[str] = "gqa"

    num_kv_heads: Annotated[int, Range(low=1), "g, the heads of keys and values."] = 2

    def __post_init__(self):
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            divisors = [str(g) for g in range(1, self.num_heads + 1) if self.num_heads % g == 0]
            raise InputError(
                f"model.attention.num_kv_heads must divide num_heads={self.num_heads}: one of "
                f"{', '.join(divisors)}; got {self.num_kv_heads}"
            )

    @property
    def groups(self) -> int:
        return self.num_kv_heads
