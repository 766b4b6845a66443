"""Published parameters in: the published code's logits out, and one sentence for each wrong
parameter.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import t6jax
from t6jax import InputError
from t6jax.ops.cross_entropy import cross_entropy

GOLDEN = sorted((pathlib.Path(__file__).parents[1] / "golden").glob("*.safetensors"))
# Models whose golden numbers are themselves known to less than the bound of 2e-5. Their attention
# weights are scaled up, and with them float32's rounding: the golden logits are off by 3e-5, 8e-5
# and 2.4e-4 from the same sums in float64, and the published operations in PyTorch on another
# processor by up to 7e-5 from the golden ones. There the bound holds for the root of the mean
# square of the error, and a further test compares in float64.
ROUGH = ("tpa", "tpa_kvonly", "tpa_r1_headnorm")


def load(path: pathlib.Path) -> tuple[dict, dict, dict]:
    """(params, config, tensors) of a golden file."""
    with safe_open(path, "np") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
        config = json.loads(f.metadata()["config"])
    return (
        {name[len("param.") :]: x for name, x in tensors.items() if name.startswith("param.")},
        config,
        tensors,
    )


@pytest.fixture
def mla():
    params, config, _ = load(next(p for p in GOLDEN if p.stem == "mla"))
    return params, config


@pytest.mark.usefixtures(
    "optimized"
)  # the order of sums, by which the bound is all but reached, is the compiler's
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
@pytest.mark.parametrize(("table", "suffix"), [(jnp.float32, "_f32_rope"), (jnp.bfloat16, "")])
def test_the_published_codes_logits_are_reproduced_in_float32(path, table, suffix):
    params, config, tensors = load(path)
    model = t6jax.from_reference(params, config, rope_table_dtype=table)
    assert model.config.attention.name == {"tpa_r1_headnorm": "tpa"}.get(path.stem, path.stem)
    assert model.config.attention.head_norm == ("headnorm" in path.stem)
    tokens = jnp.asarray(tensors["tokens"])
    logits = jax.jit(lambda model, tokens: model(tokens))(model, tokens[:, :-1])
    error = np.asarray(logits) - tensors["logits" + suffix]
    assert np.sqrt(np.mean(error**2)) < 2e-5
    if path.stem not in ROUGH:
        assert np.abs(error).max() < 2e-5
    # a mean over tokens, whose errors have both signs
    assert (
        abs(
            float(jnp.mean(cross_entropy(logits, tokens[:, 1:])))
            - float(tensors["loss" + suffix][0])
        )
        < 2e-5
    )


def published_float64(params: dict, c: dict, tokens: np.ndarray) -> np.ndarray:
    """What the published T6 and T6_kvonly compute, in float64 but for RoPE's tables, which are
    bfloat16.
    """
    p = {name: x.astype(np.float64) for name, x in params.items()}
    h, d, rank = c["n_head"], c["head_dim"], c["rank"]
    norm = lambda x, eps: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    angle = np.outer(
        np.arange(tokens.shape[1]),
        1 / np.float32(10000) ** (np.arange(0, d, 2, dtype=np.float32) / d),
    )
    cos, sin = (
        f(angle.astype(np.float32)).astype(jnp.bfloat16).astype(np.float64)[None, :, None]
        for f in (np.cos, np.sin)
    )

    def rope(x):
        x1, x2 = np.split(x, 2, axis=-1)
        return np.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], axis=-1)

    x = p["lm_head.weight"][tokens]
    causal = np.tril(np.ones((tokens.shape[1],) * 2, bool))
    for i in range(c["n_layer"]):
        of = f"transformer.h.{i}."
        y = norm(x, np.finfo(np.float32).eps)
        a = lambda which, r, of=of, y=y: (y @ p[f"{of}attn.c_qkv.W_A_{which}.weight"].T).reshape(
            *tokens.shape, h, r
        )
        b = lambda which, r, of=of, y=y: (y @ p[f"{of}attn.c_qkv.W_B_{which}.weight"].T).reshape(
            *tokens.shape, r, d
        )
        if f"{of}attn.c_qkv.c_q.weight" in p:
            q = rope((y @ p[f"{of}attn.c_qkv.c_q.weight"].T).reshape(*tokens.shape, h, d))
        else:
            q = a("q", c["q_rank"]) @ rope(b("q", c["q_rank"])) / c["q_rank"]
        k, v = a("k", rank) @ rope(b("k", rank)) / rank, a("v", rank) @ b("v", rank) / rank
        logits = np.where(causal, np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(d), -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        heads = np.einsum("bhts,bshd->bthd", weights / weights.sum(axis=-1, keepdims=True), v)
        if c["using_groupnorm"]:
            heads = norm(heads, 1e-5) * p[f"{of}attn.subln.weight"]
        x = x + heads.reshape(*tokens.shape, -1) @ p[f"{of}attn.c_proj.weight"].T
        y = norm(x, np.finfo(np.float32).eps)
        gate = y @ p[f"{of}mlp.c_fc1.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (y @ p[f"{of}mlp.c_fc2.weight"].T))
            @ p[f"{of}mlp.c_proj.weight"].T
        )
    return norm(x, np.finfo(np.float32).eps) @ p["lm_head.weight"].T


@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem in ROUGH], ids=lambda p: p.stem)
def test_where_float32_is_too_rough_float64_shows_the_same_function(path, monkeypatch):
    params, config, tensors = load(path)
    tokens = tensors["tokens"][:, :-1]
    want = published_float64(params, config, tokens)
    # PyTorch's float32 rounding, see ROUGH
    assert np.sqrt(np.mean((want - tensors["logits"]) ** 2)) < 2e-5
    monkeypatch.setattr("t6jax.interop.reference.DTYPES", ("float64",))
    monkeypatch.setattr("t6jax.fields.OneOf.__contains__", lambda *_: True)  # for model.dtype
    with jax.enable_x64(True):
        wide = {name: x.astype(np.float64) for name, x in params.items()}
        logits = np.asarray(t6jax.from_reference(wide, config, jnp.bfloat16)(jnp.asarray(tokens)))
    # float64's rounding of some 10^-16 is scaled up as float32's of 10^-7 is to 10^-4
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-11)


def test_the_tables_dtype_is_the_models():
    params, config, _ = load(GOLDEN[0])
    assert t6jax.from_reference(params, config).config.rope_table_dtype == "float32"
    assert t6jax.from_reference(params, config, jnp.bfloat16).config.rope_table_dtype == "bfloat16"


def test_the_model_computes_in_the_parameters_dtype(mla):
    params, config = mla
    half = t6jax.from_reference({k: v.astype(jnp.bfloat16) for k, v in params.items()}, config)
    assert half.config.dtype == half.config.param_dtype == "bfloat16"
    assert {str(x.dtype) for x in jax.tree.leaves(half.blocks)} == {"bfloat16"}


def test_the_tied_embedding_may_go_by_either_name_or_both(mla):
    params, config = mla
    embedding = params.pop("lm_head.weight")
    for names in (["transformer.wte.weight"], ["transformer.wte.weight", "lm_head.weight"]):
        model = t6jax.from_reference(params | dict.fromkeys(names, embedding), config)
        np.testing.assert_array_equal(model.embedding[...], embedding)
    with pytest.raises(InputError, match=r"transformer\.wte\.weight and lm_head\.weight differ"):
        t6jax.from_reference(
            params | {"transformer.wte.weight": embedding, "lm_head.weight": embedding + 1}, config
        )


def test_a_missing_parameter_is_named(mla):
    params, config = mla
    for name in (
        "transformer.h.2.attn.kv_b_proj.weight",
        "lm_head.weight",
        "transformer.h.0.mlp.c_fc2.weight",
    ):
        with pytest.raises(InputError, match=f"^the checkpoint lacks the parameter {name}$"):
            t6jax.from_reference({k: v for k, v in params.items() if k != name}, config)


def test_an_unknown_parameter_is_named(mla):
    params, config = mla
    extra = {
        "transformer.h.3.mlp.c_fc1.weight": np.zeros((2, 2), np.float32),
        "step": np.zeros((), np.float32),
    }
    with pytest.raises(
        InputError,
        match=r"that the model does not have: step, transformer\.h\.3\.mlp\.c_fc1\.weight",
    ):
        t6jax.from_reference(params | extra, config)


def test_a_misshapen_parameter_is_named_with_both_shapes(mla):
    params, config = mla
    name = "transformer.h.1.attn.q_b_proj.weight"
    with pytest.raises(
        InputError,
        match=rf"^the parameter {name} has shape \[119, 24\], but the config asks for \[120, 24\]$",
    ):
        t6jax.from_reference(params | {name: params[name][:-1]}, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": None}, "config has n_head=None: n_head must be an integer"),
        ({"n_embd": 0}, "config has n_embd=0"),
        ({"v_head_dim": 8}, "v_head_dim=8, which must equal head_dim=16"),
    ],
)
def test_a_wrong_key_of_the_config_is_named(mla, change, message):
    params, config = mla
    with pytest.raises(InputError, match=message):
        t6jax.from_reference(params, config | change)


def test_a_missing_key_of_the_config_is_named(mla):
    params, config = mla
    del config["kv_lora_rank"]
    with pytest.raises(InputError, match="config lacks kv_lora_rank"):
        t6jax.from_reference(params, config)


def test_an_unknown_mechanism_and_mixed_dtypes_are_refused(mla):
    params, config = mla
    with pytest.raises(InputError, match="the mechanism cannot be recognised"):
        t6jax.from_reference({k: v for k, v in params.items() if ".attn." not in k}, config)
    with pytest.raises(
        InputError,
        match="must all have one dtype, of float32, bfloat16, float16; got float32, int32",
    ):
        t6jax.from_reference(params | {"step": np.zeros((), np.int32)}, config)


@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_types_are_named(mla):
    params, config = mla
    for arguments, message in (
        ((None, config), "params must be a dict of names; got None"),
        ((params, None), "config must be a dict of keys; got None"),
        (
            (params | {"lm_head.weight": [1.0]}, config),
            "the parameter lm_head.weight must be an ar",
        ),
        ((params, config, "x"), "rope_table_dtype must be a dtype; got 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            t6jax.from_reference(*arguments)
