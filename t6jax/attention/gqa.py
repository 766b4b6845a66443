"""Grouped-query attention (appendix H.2)."""

import dataclasses
from typing import ClassVar

from t6jax.attention.dense import DenseConfig
from t6jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class GQAConfig(DenseConfig):
    """num_kv_heads: g, the heads of keys and values; num_heads / num_kv_heads query heads share
    each.
    """

    name: ClassVar[str] = "gqa"

    num_kv_heads: int = 2

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("num_kv_heads")
        if self.num_heads % self.num_kv_heads:
            divisors = [str(g) for g in range(1, self.num_heads + 1) if self.num_heads % g == 0]
            raise InputError(
                f"attention.num_kv_heads must divide attention.num_heads={self.num_heads}: one of "
                f"{', '.join(divisors)}; "
                f"got {self.num_kv_heads}"
            )

    @property
    def groups(self) -> int:
        return self.num_kv_heads
