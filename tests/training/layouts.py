"""Trains tiny models over 8 virtual CPU devices in every layout and prints what it measured, for
test_layouts.py.

usage: python tests/training/layouts.py [--all], in the repository's root
"""

import json
import os
import sys

# unoptimized code: the compiler's time is most of this program's
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from configs import common
from t6jax.config import RunConfig
from t6jax.parallel.collectives import collectives, equations, written
from t6jax.parallel.mesh import MESH_AXES
from t6jax.training.step import Trainer

STEPS, ROWS, LENGTH, VOCABULARY = 8, 16, 16, 73
LAYOUTS = {
    "one": {"data": 1},
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "tensor 4 x data 2": {"data": 2, "tensor": 4},
    "fsdp 2 x tensor 2 x sequence 2": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
    "fsdp 4 x sequence 2, both on d_model, dots": {"data": 1, "fsdp": 4, "sequence": 2},
}
BOTH = "fsdp 4 x sequence 2, both on d_model, dots"
MIXED = "fsdp 2 x tensor 2 x sequence 2"
# What differs between mechanisms is how heads are split and what is gathered along a sequence.
# These layouts have all of that; over data or fsdp alone TPA stands for all.
OF_EACH_MECHANISM = ("one", "tensor 4 x data 2", MIXED, BOTH)
# Heads, SwiGLU's width (85) and the vocabulary are divisible by no mesh axis. The vocabulary padded
# to 74 or 76, and a device's 37 or 19 of it, are no other size here: they tell logits from other
# arrays.
MECHANISMS = {
    "tpa": {"num_heads": 5, "head_dim": 8, "rank_q": 3, "rank_k": 2, "rank_v": 1},
    "tpa_kvonly": {"num_heads": 5, "head_dim": 8},
    "mha": {"num_heads": 5, "head_dim": 8},
    "mla": {"num_heads": 5, "head_dim": 8, "kv_rank": 12, "q_rank": 20, "rope_dim": 4},
    "gqa": {
        "num_heads": 10,
        "head_dim": 8,
        "num_kv_heads": 5,
    },  # heads are split, and their groups are not: over 2 devices a group is on both
}
# What two models differ in whose compiled steps' memory is compared: layers with many parameters,
# and few tokens (12 on a device); many logits.
MANY_LAYERS = [{"num_layers": n, "d_model": 256, "context_length": 6} for n in (3, 5)]
MANY_LOGITS = [{"vocab_size": n} for n in (1021, 2045)]
# layout, the two models, further keys of both
GROWING = (
    ("data 8", MANY_LAYERS, {"unroll": False}),
    ("fsdp 8", MANY_LAYERS, {"unroll": False}),
    ("tensor 4 x data 2", MANY_LOGITS, {}),
)
ALL_GROWING = (*GROWING, ("fsdp 8", MANY_LAYERS, {}))
# (mechanism, layout, document masking, accumulation steps)
OF_TPA = [
    *(("tpa", layout, False, 1) for layout in LAYOUTS),
    *(("tpa", layout, True, 2) for layout in ("one", MIXED)),
]
# each time: the mechanisms whose heads and cache differ most from TPA's, over all axes but data
CASES = [
    *OF_TPA,
    *((name, layout, False, 1) for name in ("mla", "gqa") for layout in ("one", MIXED)),
]
ALL_CASES = [
    *OF_TPA,
    *(
        (name, layout, False, 1)
        for name in MECHANISMS
        if name != "tpa"
        for layout in OF_EACH_MECHANISM
    ),
]


def trainer(mechanism: str, layout: str, masked: bool, micro_batches: int, **keys) -> Trainer:
    """keys: of the model, in place of those below."""
    config = common.get_config()
    config.update(batch_size=ROWS, accumulation_steps=micro_batches)
    config.model.update(
        vocab_size=VOCABULARY, num_layers=2, d_model=32, context_length=LENGTH, dtype="float32"
    )
    # a loop compiles faster; TPA has parameters prefetched over one axis and over several
    config.model.unroll = layout == BOTH or (mechanism == "tpa" and layout != "one")
    config.model.update(keys)
    config.model.attention = common.attention(mechanism, **MECHANISMS[mechanism])
    config.optimizer.update(
        learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=2, decay_steps=STEPS
    )
    config.mesh.update(LAYOUTS[layout])
    if layout == BOTH:
        config.sharding.d_model = "fsdp,sequence"
        config.model.remat = "dots"
    config = config.to_dict()
    sizes = [config["mesh"][axis] for axis in MESH_AXES]
    mesh = Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), MESH_AXES)
    return Trainer(RunConfig.from_dict(config), mesh, document_start=3 if masked else None)


def batches() -> list[np.ndarray]:
    """Rows that count on from their first token, with some noise: there is something to learn."""
    draw = np.random.default_rng(0)
    counting = lambda: (
        (draw.integers(0, VOCABULARY, (ROWS, 1)) + np.arange(LENGTH + 1)) % VOCABULARY
    )
    noise = lambda x: np.where(
        draw.random(x.shape) < 0.3, draw.integers(0, VOCABULARY, x.shape), x
    ).astype(np.int32)
    return [noise(counting()) for _ in range(STEPS)]


def logits(t: Trainer, micro_batches: int) -> dict:
    """What tells a micro-batch's logits on one device: the number of tokens; the vocabulary's size,
    as it is, padded, and of one device's shard.
    """
    sizes = t.mesh.shape
    split = sizes["data"] * sizes["fsdp"] * sizes["sequence"]
    shard = -(-VOCABULARY // sizes["tensor"])
    return {
        "tokens": ROWS // micro_batches * LENGTH // split,
        "widths": [VOCABULARY, shard * sizes["tensor"], shard],
    }


def growth(layout: str, models: list[dict], both: dict) -> dict:
    """Temporary bytes of a device in the compiled step of each of two models, and the number of
    parameters in their layers.
    """
    found = {"layout": layout, "unroll": both.get("unroll", True), "temporary": [], "layers": []}
    for keys in models:
        t = trainer("tpa", layout, False, 1, **keys, **both)
        windows = jax.ShapeDtypeStruct(
            (ROWS, keys.get("context_length", LENGTH) + 1), "int32", sharding=t.batch_sharding
        )
        memory = t.step.trace(t.abstract_arrays(), windows).lower().compile().memory_analysis()
        found["temporary"].append(memory.temp_size_in_bytes)
        found["layers"].append(
            sum(x.size for x in jax.tree.leaves(t.abstract_state.params["blocks"]))
        )
    return found


def kept_of_layers() -> list[tuple[int, ...]]:
    """Shapes of the outputs of loops over layers, among them what is kept for the gradient. A
    device's 12 tokens, and the 6 of a chunk, are no other size here.
    """
    t = trainer("tpa_kvonly", MIXED, False, 1, context_length=24, unroll=False)
    traced = t.step.trace(
        t.abstract_arrays(), jax.ShapeDtypeStruct((ROWS, 25), "int32", sharding=t.batch_sharding)
    )
    return sorted(
        {
            v.aval.shape
            for e, _ in equations(traced)
            if e.primitive.name == "scan"
            for v in e.outvars
        }
    )


def run(case: tuple, states: dict, gradients: dict) -> dict:
    """What a case gives; gradients: of the first layout of each case, a single device's, which the
    others' are held against.
    """
    t = trainer(*case)
    name = case[0]
    if name not in states:  # the same for all layouts
        draw = np.random.default_rng(0)
        states[name] = jax.tree.map(
            lambda x: draw.uniform(-0.15, 0.15, x.shape).astype(x.dtype), t.abstract_state.params
        )
    params = jax.tree.map(jax.device_put, states[name], t.shardings.params)
    zeros = lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s)
    rest = jax.tree.map(zeros, t.abstract_state.opt_state, t.shardings.opt_state)
    key = jax.device_put(jax.random.key(0), t.shardings.key)
    state = type(t.abstract_state)(
        zeros(t.abstract_state.step, t.shardings.step), params, rest, key
    )
    rows = [jax.device_put(x, t.batch_sharding) for x in batches()]
    traced = t.step.trace(state, rows[0])
    compiled = traced.lower().compile()
    memory, losses = compiled.memory_analysis(), []
    for batch in rows:
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["train_loss"]))
        if len(losses) == 1:  # Adam's first moment is the clipped gradient's tenth
            gradient = jax.tree.map(np.asarray, optax.tree.get(state.opt_state, "mu"))
    single = gradients.setdefault((case[0], *case[2:]), gradient)
    off = jax.tree.map(lambda g, w: float(np.abs(g - w).max() / np.abs(w).max()), gradient, single)
    sums = []
    if case[2]:  # the validation's, of some of the rows
        mask = jax.device_put((np.arange(ROWS) % 3 > 0).astype(np.float32), t.batch_sharding)
        sums = [float(x) for x in t.loss_sums(state.params, rows[0], mask)]
    return {
        "case": case,
        "losses": losses,
        "validation": sums,
        "gradient_off": max(jax.tree.leaves(off)),
        "collectives": [(c.kind, c.shapes, c.times) for c in collectives(compiled)],
        "written": [
            (kind, axes, *numbers)
            for (kind, axes), numbers in written(traced, t.mesh.shape).items()
        ],
        "arguments": memory.argument_size_in_bytes,
        "logits": logits(t, case[3]),
        "embedding": list(t.abstract_state.params["embedding"].shape),
        "stacked": [list(x.shape) for x in jax.tree.leaves(t.abstract_state.params["blocks"])],
    }


if __name__ == "__main__":
    starts: dict = {}
    first: dict = {}
    for case in ALL_CASES if "--all" in sys.argv else CASES:
        print(json.dumps(run(case, starts, first)), flush=True)
    print(json.dumps([growth(*what) for what in (ALL_GROWING if "--all" in sys.argv else GROWING)]))
    print(json.dumps(kept_of_layers()))
