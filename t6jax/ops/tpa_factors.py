"""The factors of queries, keys and values (eq. 3.1), and what they must be to fit together."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from pallas_kernels.decode.cache_layout import CacheLayout
from t6jax.arguments import floats, shown
from t6jax.errors import InputError
from t6jax.ops.rope import RoPE


class TPAQuery(NamedTuple):
    """The factors of queries: Q = 1/R_Q sum_r a_r (x) b_r (eq. 3.1), RoPE already applied to b."""

    a: Float[Array, "B N R_Q H"]
    b: Float[Array, "B N R_Q D"]


class TPAEntry(NamedTuple):
    """The factors of tokens that are cached: K = 1/R_K sum_r a_r (x) b_r, V likewise (eq. 3.1).

    b_k has RoPE applied (eq. 3.5), unless its cache rotates keys when they are read. A factor is
    None where it is the same for all tokens (`FixedFactors`), and b_v is None where the values
    share the keys' B factors. Axes B and T may have size 1 where a factor does not depend on them.
    """

    a_k: Float[Array, "#B #T R_K H"] | None
    b_k: Float[Array, "#B #T R_K D"] | None
    a_v: Float[Array, "#B #T R_V H"] | None
    b_v: Float[Array, "#B #T R_V E"] | None


class FixedFactors(NamedTuple):
    """The factors that are the same for all tokens: non-contextual A or B (appendices A.1 and I).

    They are parameters of a model, not part of its cache: `decode` takes them as an argument. b_k
    is before RoPE where the cache was made with `rope`. None: the factor depends on the token, or
    b_v is shared with b_k.
    """

    a_k: Float[Array, "R_K H"] | None = None
    b_k: Float[Array, "R_K D"] | None = None
    a_v: Float[Array, "R_V H"] | None = None
    b_v: Float[Array, "R_V E"] | None = None


def key_value_factors(
    tokens: TPAEntry, fixed: FixedFactors, rope: RoPE | None, positions: Int[Array, "#B T"]
) -> TPAEntry:
    """The factors that eq. 3.1 combines: those of the tokens, and the fixed ones for each token.

    Args:
      tokens: the factors that depend on the token.
      fixed: those that do not. With b_v in neither, values share b_k before RoPE.
      rope: rotates b_k by the positions; None: it is rotated.
      positions: [B, T], or [1, T].

    Returns:
      Every factor, [B, T, R, .]; an axis B or T that it does not depend on may have size 1.
    """
    given: Any = [
        t if t is not None or f is None else f[None, None]
        for t, f in zip(tokens, fixed, strict=True)
    ]
    a_k, b_k, a_v, b_v = given  # only b_v may still be None
    return TPAEntry(a_k, b_k if rope is None else rope(b_k, positions), a_v, _or(b_v, b_k))


def _or(x: Array | None, y: Array) -> Array:
    return y if x is None else x


def check_factors(tokens: TPAEntry, fixed: FixedFactors) -> None:
    for name in TPAEntry._fields:
        token, same = getattr(tokens, name), getattr(fixed, name)
        if token is not None:
            floats(name, token)
        if token is not None and same is not None:
            raise InputError(f"{name} and fixed.{name} are both given: give one of them")
        if token is not None and token.ndim != 4:
            raise InputError(
                f"{name} must have 4 axes [batch, token, rank, head or feature], got shape "
                f"{token.shape}: give a factor that is the same for all tokens in "
                f"fixed=FixedFactors({name}=...), here and to decode"
            )
        if same is not None and same.ndim != 2:
            raise InputError(
                f"fixed.{name} must have 2 axes [rank, head or feature], got shape {same.shape}"
            )
        if token is None and same is None and name != "b_v":
            raise InputError(f"{name} is missing: give it, or fixed=FixedFactors({name}=...)")
    given = {
        **{name: x for name, x in tokens._asdict().items() if x is not None},
        **{f"fixed.{name}": x for name, x in fixed._asdict().items() if x is not None},
    }
    shapes = {name.removeprefix("fixed."): x.shape[-2:] for name, x in given.items()}
    per_token = {name: x for name, x in given.items() if x.ndim == 4}
    if not per_token:
        raise InputError("at least one factor must depend on the token: all of them are fixed")
    for one, two in (("a_k", "a_v"), ("b_k", "b_v")):
        if two in shapes and (getattr(fixed, one) is None) != (getattr(fixed, two) is None):
            raise InputError(
                f"{one} and {two} must either both depend on the token or both be fixed"
            )
    (rank_k, heads), rank_v = shapes["a_k"], shapes["a_v"][0]
    if "b_v" not in shapes and rank_k != rank_v:
        raise InputError(
            f"a_v has rank {rank_v}, but shares b_k, whose rank is {rank_k}: give b_v, or equal "
            "ranks"
        )
    lead = next(iter(per_token.values())).shape[:2]
    wanted = {"b_k": (rank_k, None), "a_v": (None, heads), "b_v": (rank_v, None)}
    for name, x in given.items():
        want = wanted.get(name.removeprefix("fixed."), (None, None))
        want = (*lead, *want) if x.ndim == 4 else want
        if any(w is not None and w != got for w, got in zip(want, x.shape, strict=True)):
            text = ", ".join("any" if w is None else str(w) for w in want)
            raise InputError(
                f"{name} has shape {x.shape}, but the other factors, with a_k {shapes['a_k']} and "
                f"a_v {shapes['a_v']}, ask for ({text})"
            )
    if len({x.dtype for x in per_token.values()}) > 1:
        raise InputError(
            "the factors must share one dtype, got "
            f"{', '.join(f'{n} {x.dtype}' for n, x in per_token.items())}"
        )


def checked_fixed(fixed: Any) -> FixedFactors:
    """The fixed factors of an argument, none for None."""
    if fixed is not None and not isinstance(fixed, FixedFactors):
        raise InputError(f"fixed must be FixedFactors(...) or None; got {shown(fixed)}")
    fixed = FixedFactors() if fixed is None else fixed
    for name, factor in fixed._asdict().items():
        if factor is not None:
            floats(f"fixed.{name}", factor)
    return fixed


def check_entry(entry: Any, layout: CacheLayout, batch: int) -> None:
    """Raises InputError unless the entry is of the layout: in a row, factors of other sizes would
    slide into one another.
    """
    if not isinstance(entry, TPAEntry):
        raise InputError(f"entry must be a TPAEntry(a_k, b_k, a_v, b_v); got {shown(entry)}")
    stores_b_v = layout.stores_b and not layout.shared_b
    want = {
        "a_k": (layout.rank_k, layout.heads) if layout.stores_a else None,
        "b_k": (layout.rank_k, layout.dim_k) if layout.stores_b else None,
        "a_v": (layout.rank_v, layout.heads) if layout.stores_a else None,
        "b_v": (layout.rank_v, layout.dim_v) if stores_b_v else None,
    }
    given = {name: x for name, x in entry._asdict().items() if x is not None}
    tokens = None
    for name, size in want.items():
        if (size is None) != (name not in given):
            raise InputError(
                f"entry.{name} is given, but the cache does not hold {name}: leave it None"
                if size is None
                else f"entry.{name} is missing: the cache holds {name}"
            )
        if size is None:
            continue
        shape = floats(f"entry.{name}", given[name]).shape
        tokens = shape[1] if tokens is None and len(shape) == 4 else tokens
        if shape != (batch, tokens, *size):
            wanted = f"[{batch}, {'T' if tokens is None else tokens}, {size[0]}, {size[1]}]"
            raise InputError(
                f"entry.{name} has shape {list(shape)}, but the cache asks for {wanted}"
            )
