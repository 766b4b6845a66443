"""What defines a model: ModelConfig, to and from plain dicts."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from t6jax.errors import InputError
from t6jax.fields import OneOf, Range, Section, build

if TYPE_CHECKING:
    from t6jax.attention import AttentionConfig
else:  # the mechanisms import JAX, which takes seconds; a misspelt flag is named before that
    AttentionConfig = Any

DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """A T6: L pre-norm blocks of attention and SwiGLU over a tied embedding (section 3.5)."""

    section: ClassVar[str] = "model"

    vocab_size: Annotated[int, Range(low=1), "V, the size of the vocabulary."]
    num_layers: Annotated[int, Range(low=1), "L, the number of blocks."]
    d_model: Annotated[int, Range(low=1), "Width of the hidden states."]
    context_length: Annotated[
        int, Range(low=1), "T, tokens of a training sequence; default capacity of a cache."
    ]
    attention: Annotated[AttentionConfig, "The mechanism's name and its keys, heads included."]
    mlp_width: Annotated[
        int, Range(low=0), "Width of the SwiGLU; 0: the published floor(8/3 d_model)."
    ] = 0
    dtype: Annotated[str, OneOf(DTYPES), "Dtype of the computation."] = "bfloat16"
    param_dtype: Annotated[str, OneOf(DTYPES), "Dtype of the parameters; float32 to train."] = (
        "float32"
    )
    rope_base: Annotated[float, Range(above=0), "Base of RoPE's frequencies."] = 10000.0
    rope_table_dtype: Annotated[
        str, OneOf(DTYPES), "What RoPE's cosines and sines are rounded to (published: bfloat16)."
    ] = "float32"
    remat: Annotated[
        str,
        OneOf(REMAT),
        "What a block keeps of its forward pass: everything (none), the matrix products and "
        "attention's output (dots), or its input alone (full).",
    ] = "none"
    unroll: Annotated[
        bool,
        "Training compiles block after block in place of a loop over them: steps are faster, "
        "since nothing is copied in and out of the loop's stacked arrays; compilation is longer.",
    ] = False

    def __post_init__(self):
        super().__post_init__()
        _check_attention(self.attention)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the keys above, `attention` being a dict of the mechanism's `name` and its own keys.

        Raises:
            InputError: a key is unknown, missing, of the wrong type or outside its limits.
        """
        attention = values.get("attention") if isinstance(values, Mapping) else None
        if isinstance(attention, Mapping):
            values = dict(values) | {"attention": attention_from_dict(attention)}
        elif attention is not None:
            _check_attention(attention)
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of from_dict: plain values, fit for JSON."""
        return super().to_dict() | {"attention": attention_to_dict(self.attention)}

    @property
    def swiglu_width(self) -> int:
        """Width of the SwiGLU: mlp_width, or the published floor(8/3 d_model)."""
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


def _check_attention(attention: Any) -> None:
    # the class itself is not imported here: see above
    if isinstance(attention, type) or not hasattr(attention, "cached_numbers_per_token"):
        raise InputError(
            "model.attention must be a mechanism's config or, for ModelConfig.from_dict, a dict "
            f"with the mechanism's name and its keys; got {attention!r}"
        )


def attention_from_dict(values: Mapping[str, Any]) -> "AttentionConfig":
    """A mechanism's config from its `name`, its keys, and for a mechanism of one's own `module`."""
    settings = {key: value for key, value in values.items() if key not in ("name", "module")}
    return build(mechanism(values), settings, "model.attention")


def mechanism(values: Mapping[str, Any]) -> "type[AttentionConfig]":
    """The mechanism that `name` names; `module` is imported for one that is not registered yet.

    Raises:
        InputError: there is no such mechanism.
    """
    from t6jax.attention import MECHANISMS

    name, module = values.get("name"), values.get("module") or ""
    for key, value in (("name", name), ("module", module)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"model.attention.{key} must be a string; got {value!r}")
    if module.startswith("."):
        raise InputError(
            f"model.attention.module={module!r} must be a module's whole name, as package.module"
        )
    if name not in MECHANISMS and module:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise InputError(
                f"model.attention.module={module!r}, which registers {name!r}, cannot be imported "
                f"({e}): run from its folder, or put that on PYTHONPATH"
            ) from e
    if name not in MECHANISMS:
        known = ", ".join(MECHANISMS)
        raise InputError(
            f"model.attention.name must be one of {known}, or registered by t6jax.register in the "
            f"module that model.attention.module names; got {name!r}"
        )
    return MECHANISMS[name]


def attention_to_dict(attention: "AttentionConfig") -> dict[str, Any]:
    """The inverse of attention_from_dict."""
    module = type(attention).__module__
    own = not module.startswith("t6jax.") and module != "__main__"
    where = {"module": module} if own else {}
    return {"name": attention.name} | where | dataclasses.asdict(attention)
