"""TPA with non-contextual B: feature factors that are the same for all tokens, but for RoPE
(appendix I).
"""

import dataclasses
from typing import ClassVar

from t6jax.attention.tpa import TPAConfig


@dataclasses.dataclass(frozen=True)
class TPANonContextualBConfig(TPAConfig):
    """Only A factors depend on the token, and only they are cached; keys' B factors are rotated
    when they are read.
    """

    name: ClassVar[str] = "tpa_nonctx_b"
    contextual_b: ClassVar[bool] = False
