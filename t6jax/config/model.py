"""What defines a model: ModelConfig, to and from plain dicts."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from t6jax.attention import MECHANISMS, AttentionConfig
from t6jax.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A T6: L pre-norm blocks of attention and SwiGLU over a tied embedding (section 3.5).

    vocab_size: V. num_layers: L. attention: a mechanism's settings, heads included.
    context_length: T, the tokens of a training sequence, and the default room of a cache.
    mlp_width: of the SwiGLU; 0 is the published floor(8/3 d_model).
    dtype: of the computation; param_dtype: of the parameters.
    rope_base, rope_table_dtype: RoPE's base, and the dtype its cosines and sines are rounded to
        (published: bfloat16).
    remat: what a block keeps of its forward pass for the backward pass: "none" rematerialised, i.e.
        everything is kept; "dots", the matrix products and attention's output are kept; "full", the
        block's input alone.
    unroll: training compiles the blocks one after another in place of a loop over them: faster
        steps, since nothing is copied in and out of the loop's stacked arrays, for a longer
        compilation.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    context_length: int
    attention: AttentionConfig
    mlp_width: int = 0
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    rope_base: float = 10000.0
    rope_table_dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False

    def __post_init__(self):
        for key in ("vocab_size", "num_layers", "d_model", "context_length"):
            if getattr(self, key) < 1:
                raise InputError(f"model.{key} must be at least 1; got {getattr(self, key)}")
        if self.mlp_width < 0:
            raise InputError(
                "model.mlp_width must be at least 1, or 0 for floor(8/3 d_model); got "
                f"{self.mlp_width}"
            )
        if self.rope_base <= 0:
            raise InputError(f"model.rope_base must be positive; got {self.rope_base}")
        for key, allowed in (
            ("dtype", DTYPES),
            ("param_dtype", DTYPES),
            ("rope_table_dtype", DTYPES),
            ("remat", REMAT),
        ):
            if getattr(self, key) not in allowed:
                raise InputError(
                    f"model.{key} must be one of {', '.join(allowed)}; got {getattr(self, key)!r}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """From the keys above, `attention` being a dict of the mechanism's `name` and its own keys.

        Raises InputError for a key that is unknown, missing or of the wrong type.
        """
        values = dict(values)
        attention = values.get("attention")
        if not isinstance(attention, Mapping):
            raise InputError(
                "model.attention must be a dict with the mechanism's name and settings"
            )
        settings = dict(attention)
        name = settings.pop("name", None)
        if name not in MECHANISMS:
            raise InputError(
                f"model.attention.name must be one of {', '.join(MECHANISMS)}; got {name!r}"
            )
        values["attention"] = _build(MECHANISMS[name], settings, "model.attention")
        return _build(cls, values, "model")

    def to_dict(self) -> dict[str, Any]:
        """The inverse of from_dict: plain values only, fit for JSON."""
        return dataclasses.asdict(self) | {
            "attention": {"name": self.attention.name} | dataclasses.asdict(self.attention)
        }

    @property
    def swiglu_width(self) -> int:
        """Of the SwiGLU: mlp_width, or the published floor(8/3 d_model)."""
        return self.mlp_width or 8 * self.d_model // 3

    @property
    def parameter_count(self) -> int:
        """All parameters, the embedding counted once."""
        block = self.attention.parameter_count(self.d_model) + 3 * self.d_model * self.swiglu_width
        return self.vocab_size * self.d_model + self.num_layers * block

    @property
    def cached_numbers_per_token(self) -> int:
        """Numbers cached for each token over all layers."""
        return self.num_layers * self.attention.cached_numbers_per_token


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """cls(**values), with keys and types checked against cls's fields."""
    types = {
        name: t
        for name, t in typing.get_type_hints(cls).items()
        if typing.get_origin(t) is not typing.ClassVar
    }
    for key, value in values.items():
        if key not in types:
            raise InputError(f"{where}.{key} is unknown; the keys there are {', '.join(types)}")
        wanted = (int, float) if types[key] is float else types[key]
        if not isinstance(value, wanted) or (isinstance(value, bool) and types[key] is not bool):
            raise InputError(f"{where}.{key} must be of type {types[key].__name__}; got {value!r}")
    fields = dataclasses.fields(cls)
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    return cls(**values)
