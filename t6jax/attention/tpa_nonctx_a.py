"""TPA with non-contextual A: head factors that are the same for all tokens (appendix A.1, Table 1).

MHA, MQA and GQA are among its instances: ranks h, 1 and G, with head factors that select heads
(appendix A).
"""

import dataclasses
from typing import ClassVar

from t6jax.attention.tpa import TPAConfig


@dataclasses.dataclass(frozen=True)
class TPANonContextualAConfig(TPAConfig):
    """Only B factors depend on the token, and only they are cached."""

    name: ClassVar[str] = "tpa_nonctx_a"
    contextual_a: ClassVar[bool] = False
