"""Runs a decode kernel on each device's shard of its arguments, and under vmap.

A device can work alone along three axes of the arguments: the sequences, the head shards, and under
vmap the mapped axis, which is joined to the sequences. The compiler cannot look into a kernel and
would gather its arguments. It is told how to split the call in the way that the mesh's axes ask
for: a partitioning rule for Auto axes, shard_map for Explicit ones.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def on_each_device(kernel, query, rows, lengths, a, b):
    """Calls kernel(query, rows, lengths, a, b) on each device with that device's shards.

    Returns (out [B, N, S, H, E], lse [B, N, S, H]).

    query    (a_q [B, N, R_Q, S, H], b_q [B, N, R_Q, D]) or (q [B, N, S, H, D],)
    rows     [B, M, S, W], or [B, M, W] where all heads read the same
    lengths  [B]
    a        () or (a_k [R_K, S, H], a_v [R_V, S, H])
    b        () or (table [M, W_B],)
    """
    arguments = query, rows, lengths, a, b
    run = _under_vmap(_under_auto_axes(kernel))
    mesh = jax.typeof(rows).sharding.mesh
    if not mesh.explicit_axes:
        return run(*arguments)
    specs = _specs(arguments, jax.tree.map(lambda x: jax.typeof(x).sharding.spec, arguments))
    arguments = jax.tree.map(
        lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)), arguments, specs[0]
    )
    split = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=specs[0],
        out_specs=specs[1],
        axis_names=set(mesh.explicit_axes),
        check_vma=False,
    )
    return split(*arguments)


def _axes(arguments):
    """The letters of each argument's axes, and of the results': b is the sequences, s the head
    shards.
    """
    query, rows, _, a, b = arguments
    letters = (
        ("bnqsh", "bnqd") if len(query) == 2 else ("bnshd",),
        "bmsw" if rows.ndim == 4 else "bmw",
        "b",
        ("ksh", "vsh") if a else (),
        ("tu",) if b else (),
    )
    return letters, ["bnshe", "bnsh"]


def _specs(arguments, specs):
    """How to shard the arguments and the results, given how the arguments are sharded.

    All are sharded as the cache is, since it must not move; along an axis over which the cache is
    not sharded, as the query is.
    """
    letters, results = _axes(arguments)
    axis = {}
    for spec, names in [(specs[1], letters[1]), (specs[0][0], letters[0][0])]:
        for letter, name in zip(names, tuple(spec) + (None,) * len(names)):
            if letter in "bs" and axis.get(letter) is None:
                axis[letter] = name
    if axis.get("b") == axis.get("s"):  # one axis of the mesh cannot split both
        axis["s"] = None

    def spec_of(names):
        return P(*[axis.get(letter) for letter in names])

    return jax.tree.map(spec_of, letters), [spec_of(names) for names in results]


def _under_auto_axes(kernel):
    def run(*arguments):
        flat, tree = jax.tree.flatten(arguments)
        letters, results = _axes(arguments)

        def run_kernel(*flat):
            return list(kernel(*jax.tree.unflatten(tree, flat)))

        whole = custom_partitioning(run_kernel)

        def partition(mesh, shapes, _):
            specs = jax.tree.unflatten(tree, [x.sharding.spec for x in shapes])
            ins, outs = _specs(jax.tree.unflatten(tree, shapes), specs)
            sharding = functools.partial(NamedSharding, mesh)
            return (
                mesh,
                run_kernel,
                [sharding(x) for x in outs],
                tuple(sharding(x) for x in jax.tree.leaves(ins)),
            )

        rule = (
            ", ".join(map(" ".join, jax.tree.leaves(letters)))
            + " -> "
            + ", ".join(map(" ".join, results))
        )
        replicated = [x for x in dict.fromkeys(rule) if x not in " ,->bs"]
        whole.def_partition(
            partition, sharding_rule=rule, need_replication_factors=tuple(replicated)
        )
        return whole(*flat)

    return run


def _under_vmap(kernel):
    run = custom_vmap(kernel)

    @run.def_vmap
    def rule(size, mapped, *arguments):
        query, rows, lengths, a, b = arguments
        # one cache for all, or fixed factors for each: one call after another
        if not mapped[1] or any(jax.tree.leaves(mapped[3:])):

            def run_one(i):
                return list(
                    run(*jax.tree.map(lambda x, m: x[i] if m else x, arguments, tuple(mapped)))
                )

            return lax.map(run_one, jnp.arange(size)), [True, True]

        def join(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        results = run(*jax.tree.map(join, (query, rows, lengths), tuple(mapped[:3])), a, b)
        return [x.reshape(size, -1, *x.shape[1:]) for x in results], [True, True]

    return run
