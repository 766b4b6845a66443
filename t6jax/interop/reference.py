"""Parameters and config of the published code (github.com/tensorgi/TPA) as a T6."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from t6jax.arguments import shown
from t6jax.config import DTYPES, ModelConfig
from t6jax.errors import InputError
from t6jax.model import T6, abstract

# The published code has one array for both, and saves it under either name or both.
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


def from_reference(
    params: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    rope_table_dtype: DTypeLike = jnp.float32,
) -> T6:
    """The model with these parameters.

    The mechanism is recognised from the parameters' names. The model computes in their dtype.

    Args:
      params: the parameters under their published names, with linear maps as [out, in].
      config: the contents of a published config.json; keys that are not needed are ignored.
      rope_table_dtype: the dtype that RoPE's cosines and sines are rounded to; the published code
        rounds them to bfloat16.

    Raises:
      InputError: if a parameter or key is missing, a parameter is unknown, or its shape is not that
        of the config.
    """
    source = _Checkpoint(params, config)
    model_config = _model_config(source, rope_table_dtype)
    layers = [
        _block(source, model_config, f"transformer.h.{i}.") for i in range(model_config.num_layers)
    ]
    embedding = source.take(HEAD, model_config.vocab_size, model_config.d_model)
    source.check_all_used()
    values = {"embedding": embedding, "blocks": jax.tree.map(lambda *x: np.stack(x), *layers)}
    graph, _ = nnx.split(abstract(model_config))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, values))


class _Checkpoint:
    """Parameters and config; it records which parameters have been used."""

    def __init__(self, params: Mapping[str, np.ndarray], config: Mapping[str, Any]):
        for name, value, keys in (("params", params, "names"), ("config", config, "keys")):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} must be a dict of {keys}; got {shown(value)}")
        for name, value in params.items():
            if not isinstance(value, np.ndarray | jax.Array):
                raise InputError(f"the parameter {name} must be an array; got {shown(value)}")
        self._params, self._config = dict(params), config
        if EMBEDDING in self._params:
            embedding = self._params.pop(EMBEDDING)
            if not np.array_equal(self._params.setdefault(HEAD, embedding), embedding):
                raise InputError(
                    f"{EMBEDDING} and {HEAD} differ, but the head is tied to the embedding: give a "
                    "tied checkpoint"
                )
        self._unused = set(self._params)

    def __contains__(self, name: str) -> bool:
        return name in self._params

    def config(self, key: str) -> int:
        """A positive integer of the config."""
        value = self._config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            given = f"has {key}={value!r}" if key in self._config else f"lacks {key}"
            raise InputError(
                f"the checkpoint's config {given}: {key} must be an integer of at least 1"
            )
        return value

    def get(self, name: str) -> np.ndarray:
        """The parameter of that name, not counted as used."""
        if name not in self._params:
            raise InputError(f"the checkpoint lacks the parameter {name}")
        return self._params[name]

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The parameter of that name, which must have that shape."""
        value = self.get(name)
        if value.shape != shape:
            raise InputError(
                f"the parameter {name} has shape {list(value.shape)}, but the config asks for "
                f"{list(shape)}"
            )
        self._unused.discard(name)
        return value

    def linear(self, name: str, n_in: int, *out: int) -> np.ndarray:
        """A linear map, stored as [prod(out), n_in], as an array [n_in, *out]."""
        return np.moveaxis(self.take(name, int(np.prod(out)), n_in).reshape(*out, n_in), -1, 0)

    def check_all_used(self) -> None:
        """Raises InputError if parameters are left over."""
        if self._unused:
            raise InputError(
                "the checkpoint has parameters that the model does not have: "
                f"{', '.join(sorted(self._unused))}"
            )

    def dtype(self) -> str:
        """The floating dtype that all parameters have."""
        dtypes = {str(x.dtype) for x in self._params.values()}
        if len(dtypes) != 1 or not dtypes <= set(DTYPES):
            raise InputError(
                f"the parameters must all have one dtype, of {', '.join(DTYPES)}; got "
                f"{', '.join(sorted(dtypes))}"
            )
        return dtypes.pop()


def _model_config(source: _Checkpoint, rope_table_dtype: DTypeLike) -> ModelConfig:
    name, settings = _mechanism(source)
    d_model, heads = source.config("n_embd"), source.config("n_head")
    head_dim = d_model // heads if name == "mha" else source.config("head_dim")
    head_norm = "transformer.h.0.attn.subln.weight" in source
    attention = {
        "name": name,
        "num_heads": heads,
        "head_dim": head_dim,
        "head_norm": head_norm,
    } | settings
    dtype = source.dtype()
    return ModelConfig.from_dict(
        {
            "vocab_size": source.config("vocab_size"),
            "num_layers": source.config("n_layer"),
            "d_model": d_model,
            "context_length": source.config("block_size"),
            "attention": attention,
            "dtype": dtype,
            "param_dtype": dtype,
            "rope_table_dtype": _dtype_name(rope_table_dtype),
        }
    )


def _dtype_name(dtype: Any) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        raise InputError(f"rope_table_dtype must be a dtype; got {shown(dtype)}") from None


def _mechanism(source: _Checkpoint) -> tuple[str, dict[str, int]]:
    """The name of the mechanism, and its own settings."""
    prefix = "transformer.h.0.attn."
    if prefix + "c_qkv.W_A_q.weight" in source:
        rank = source.config("rank")
        return "tpa", {"rank_q": source.config("q_rank"), "rank_k": rank, "rank_v": rank}
    if prefix + "c_qkv.W_A_k.weight" in source:
        return "tpa_kvonly", {"rank_k": source.config("rank"), "rank_v": source.config("rank")}
    if prefix + "kv_a_proj_with_mqa.weight" in source:
        if source.config("v_head_dim") != source.config("head_dim"):
            raise InputError(
                f"the checkpoint's config has v_head_dim={source.config('v_head_dim')}, which must "
                f"equal head_dim={source.config('head_dim')}"
            )
        keys = {"q_rank": "q_lora_rank", "kv_rank": "kv_lora_rank", "rope_dim": "qk_rope_head_dim"}
        return "mla", {key: source.config(published) for key, published in keys.items()}
    if prefix + "c_k.weight" in source:
        if source.get(prefix + "c_k.weight").shape == source.get(prefix + "c_q.weight").shape:
            return "mha", {}
        groups = source.config("n_head") // source.config("group_size")
        return ("mqa", {}) if groups == 1 else ("gqa", {"num_kv_heads": groups})
    raise InputError(
        "the mechanism cannot be recognised: the checkpoint has none of the parameters that are "
        f"expected under {prefix}"
    )


def _block(
    source: _Checkpoint, config: ModelConfig, prefix: str
) -> dict[str, dict[str, np.ndarray]]:
    c, d_model, width = config.attention, config.d_model, config.swiglu_width
    attention = ATTENTION[c.name](source, c, d_model, prefix + "attn.")
    output = source.linear(prefix + "attn.c_proj.weight", c.num_heads * c.head_dim, d_model)
    attention["w_o"] = output.reshape(c.num_heads, c.head_dim, d_model)
    if c.head_norm:
        attention["head_norm"] = source.take(prefix + "attn.subln.weight", c.head_dim)
    mlp = {
        "w_1": source.linear(prefix + "mlp.c_fc1.weight", d_model, width),
        "w_2": source.linear(prefix + "mlp.c_fc2.weight", d_model, width),
        "w_3": source.linear(prefix + "mlp.c_proj.weight", width, d_model),
    }
    return {"attention": attention, "mlp": mlp}


def _factors(
    source: _Checkpoint, c: Any, d_model: int, prefix: str, roles: str
) -> dict[str, np.ndarray]:
    values = {}
    for role in roles:
        rank = getattr(c, f"rank_{role}")
        # the rows of A are ordered (head, rank), those of B (rank, feature)
        a = source.linear(f"{prefix}c_qkv.W_A_{role}.weight", d_model, c.num_heads, rank)
        values[f"w_a_{role}"] = a.swapaxes(1, 2)
        values[f"w_b_{role}"] = source.linear(
            f"{prefix}c_qkv.W_B_{role}.weight", d_model, rank, c.head_dim
        )
    return values


def _tpa(source: _Checkpoint, c: Any, d_model: int, prefix: str) -> dict[str, np.ndarray]:
    return _factors(source, c, d_model, prefix, "qkv")


def _tpa_kvonly(source: _Checkpoint, c: Any, d_model: int, prefix: str) -> dict[str, np.ndarray]:
    w_q = source.linear(prefix + "c_qkv.c_q.weight", d_model, c.num_heads, c.head_dim)
    return {"w_q": w_q} | _factors(source, c, d_model, prefix, "kv")


def _dense(source: _Checkpoint, c: Any, d_model: int, prefix: str) -> dict[str, np.ndarray]:
    heads = {"q": c.num_heads, "k": c.groups, "v": c.groups}
    return {
        f"w_{x}": source.linear(f"{prefix}c_{x}.weight", d_model, n, c.head_dim)
        for x, n in heads.items()
    }


def _mla(source: _Checkpoint, c: Any, d_model: int, prefix: str) -> dict[str, np.ndarray]:
    queries = source.linear(
        prefix + "q_b_proj.weight", c.q_rank, c.num_heads, c.head_dim + c.rope_dim
    )
    keys_values = source.linear(prefix + "kv_b_proj.weight", c.kv_rank, c.num_heads, 2 * c.head_dim)
    down = source.linear(prefix + "kv_a_proj_with_mqa.weight", d_model, c.kv_rank + c.rope_dim)
    values = {
        "w_dq": source.linear(prefix + "q_a_proj.weight", d_model, c.q_rank),
        "q_norm": source.take(prefix + "q_a_layernorm.weight", c.q_rank),
        "kv_norm": source.take(prefix + "kv_a_layernorm.weight", c.kv_rank),
    }
    values["w_uq"], values["w_qr"] = np.split(queries, [c.head_dim], axis=-1)
    values["w_uk"], values["w_uv"] = np.split(keys_values, 2, axis=-1)
    values["w_dkv"], values["w_kr"] = np.split(down, [c.kv_rank], axis=-1)
    return values


# (source, mechanism's config, d_model, prefix of the names) -> the mechanism's own parameters
ATTENTION: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "tpa": _tpa,
    "tpa_kvonly": _tpa_kvonly,
    "mha": _dense,
    "gqa": _dense,
    "mqa": _dense,
    "mla": _mla,
}
