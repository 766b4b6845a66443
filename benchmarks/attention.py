"""Causal attention over whole sequences, forward and backward: which implementation is fastest for
the trained shapes?

    python -m benchmarks.attention [--out=benchmarks/results]

`t6jax.ops.attention`, with the kernels of ours that it takes for the shape; cuDNN's flash
attention; and, for T6 XL's shape, the Pallas Mosaic GPU attention that comes with JAX (float16
alone, and forward alone: its backward pass takes no causal mask) and tokamax's, where it is
installed, with its own choice of blocks and with others. Each is first held against the formula.
Times are the GPU's, from the profiler, everything counted that a call launches; operations are
those of the causal half, 2 products forward and 5 backward. Writes attention_<gpu>.json and prints
a table.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention_mgpu

from benchmarks.device_time import device_seconds
from benchmarks.record import add_arguments, provenance, write
from t6jax.ops.attention import causal_attention

# name: rows, tokens, heads, features
SHAPES = {
    "T6 XL": (24, 1024, 78, 64),
    "T6 medium": (32, 1024, 47, 64),
    "MHA XL": (24, 1024, 25, 64),
    "T6 XL, short": (96, 256, 78, 64),
    "T6 XL, longer": (12, 2048, 78, 64),
    "T6 XL, long": (6, 4096, 78, 64),
}
OURS = "t6jax", "cuDNN"  # what t6jax runs through, which has to work


def cudnn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def formula(q, k, v):
    def row(arrays):  # one at a time, for the memory
        q, k, v = (x.astype(jnp.float32)[None] for x in arrays)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")[0]

    return jax.lax.map(jax.checkpoint(row), (q, k, v))


def jax_mosaic(block_q, block_kv, steps):
    # it scales nothing
    config = attention_mgpu.TuningConfig(
        block_q=block_q, block_kv=block_kv, max_concurrent_steps=steps, causal=True
    )
    return lambda q, k, v: attention_mgpu.attention(q * q.shape[-1] ** -0.5, k, v, config)


def tokamax(forward=None, backward=None):
    """forward: block_q, block_kv, num_stages; backward: block_q, block_kv, num_stages, compute_wgs;
    None: its own choice.
    """
    from tokamax._src.ops.attention import (
        pallas_mosaic_gpu,
        pallas_mosaic_gpu_kernel_sm90,
        pallas_mosaic_gpu_vjp,
    )
    from tokamax._src.ops.attention.pallas_mosaic_gpu_vjp_common import Config

    options, vjp_options = {}, {}
    if forward:
        q, kv, stages = forward
        options["config"] = pallas_mosaic_gpu_kernel_sm90.Config(
            block_q=q, block_kv=kv, num_stages=stages
        )
    if backward:
        q, kv, stages, groups = backward
        blocks = dict(block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)
        vjp_options["config"] = Config(**blocks, num_stages=stages, compute_wgs=groups)
    vjp = pallas_mosaic_gpu_vjp.PallasMosaicGpuFlashAttentionVjp(**vjp_options)
    attention = pallas_mosaic_gpu.PallasMosaicGpuFlashAttention(**options, vjp=vjp)
    return functools.partial(attention, is_causal=True)


def candidates(shape):
    """(name, what makes the function, its inputs' dtype, whether it has a backward pass)."""
    yield OURS[0], lambda: causal_attention, jnp.bfloat16, True
    yield OURS[1], lambda: cudnn, jnp.bfloat16, True
    if shape != "T6 XL":
        return
    for blocks in ((64, 128, 2), (128, 128, 2), (128, 64, 2)):
        yield f"JAX Mosaic GPU {blocks}", functools.partial(jax_mosaic, *blocks), jnp.float16, False
    yield "tokamax", tokamax, jnp.bfloat16, True
    for forward, backward in zip(
        itertools.product((64, 128), (64, 128), (2,)),
        ((64, 64, 2, 1), (64, 128, 2, 2), (128, 64, 2, 2), (64, 64, 3, 2)),
        strict=True,
    ):
        yield (
            f"tokamax {forward}, {backward}",
            functools.partial(tokamax, forward, backward),
            jnp.bfloat16,
            True,
        )


def draw(shape, seed, dtype):
    return [
        jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(seed), 4)
    ]


def both(f, shape, dtype, *, backward):
    """Result and gradients of f, on inputs of this shape but few rows: enough for every
    multiprocessor to have a head.
    """
    *inputs, grad = draw((5, *shape[1:]), 0, dtype)

    @jax.jit
    def run(grad, *inputs):
        out, vjp = jax.vjp(f, *inputs)
        return [out, *(vjp(grad.astype(out.dtype)) if backward else ())]

    return run(grad, *inputs)


wanted = functools.cache(functools.partial(both, formula))


def error(f, shape, dtype, *, backward):
    """The largest distance from the formula of result and gradients, in units of their norms."""
    distance = lambda x, y: jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y)
    found, want = (g(shape, dtype, backward=backward) for g in (functools.partial(both, f), wanted))
    return max(float(distance(x, y)) for x, y in zip(found, want, strict=True))


def measure(make, shape, dtype, *, backward):
    f = make()
    found = {"relative_error": error(f, shape, dtype, backward=backward)}
    forward, inputs = jax.jit(f), [draw(shape, seed, dtype) for seed in range(2)]
    calls = {"forward": [lambda x=x: forward(*x[:3]) for x in inputs] * 2}
    if backward:
        # the forward pass that a gradient follows may be another one
        trained = jax.jit(lambda *x: jax.vjp(f, *x)[0])
        gradient = jax.jit(lambda q, k, v, g: jax.vjp(f, q, k, v)[1](g))
        calls["forward, trained"] = [lambda x=x: trained(*x[:3]) for x in inputs] * 2
        calls["both"] = [lambda x=x: gradient(*x) for x in inputs] * 2
    seconds = device_seconds(calls)
    found["forward_microseconds"] = seconds["forward"] * 1e6
    if backward:
        found["backward_microseconds"] = (seconds["both"] - seconds["forward, trained"]) * 1e6
    return found


def table(record):
    yield (
        f"{record['device']}, {record['date']}, JAX {record['jax']}; rows, tokens, heads, "
        "features: "
        + "; ".join(
            f"{name} {SHAPES[name]}"
            for name in dict.fromkeys(r["shape"] for r in record["results"])
        )
    )
    yield ""
    yield "| shape | implementation | forward us | TFLOP/s | backward us | TFLOP/s | error |"
    yield "|---|---|---|---|---|---|---|"
    for r in record["results"]:
        if r.get("failed", "").startswith("ModuleNotFoundError"):
            continue
        if "failed" in r:
            yield f"| {r['shape']} | {r['name']} | {r['failed']} | | | | |"
            continue
        rows, tokens, heads, features = SHAPES[r["shape"]]
        product = rows * heads * tokens**2 * features  # multiply and add, half of the square
        cells = []
        for key, products in (("forward_microseconds", 2), ("backward_microseconds", 5)):
            time = r.get(key)
            cells += [f"{time:.0f}", f"{products * product / time / 1e6:.0f}"] if time else ["", ""]
        yield f"| {r['shape']} | {r['name']} | {' | '.join(cells)} | {r['relative_error']:.1e} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    add_arguments(parser)
    args = parser.parse_args()
    if jax.default_backend() != "gpu":
        parser.error("this needs an NVIDIA GPU")
    record = provenance("benchmarks.attention", jax.devices()[0].device_kind, args.commit) | {
        "results": []
    }
    for name in args.shapes:
        for candidate, make, dtype, backward in candidates(name):
            try:
                result = measure(make, SHAPES[name], dtype, backward=backward)
            except (
                Exception
            ) as e:  # whatever another library's kernel says to a shape or a choice of blocks
                if candidate in OURS:
                    raise
                result = {"failed": f"{type(e).__name__}: {e}".splitlines()[0][:200]}
            record["results"].append({"shape": name, "name": candidate} | result)
            write(args.out, "attention", record)
    print("\n".join(table(record)))


if __name__ == "__main__":
    main()
