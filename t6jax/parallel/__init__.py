"""Training a model on many devices: where arrays are stored, and what devices send each other.

**The mesh** (`mesh`). Devices form a mesh with four axes. The rows of a batch are split over `data`
and `fsdp`, the tokens of each row over `sequence`, and heads, SwiGLU columns and the vocabulary
over `tensor`. Any axis may have size 1.

**A step** (`sharded`). The training step runs the model's own code on every device at once, under
`jax.shard_map`. In that code arrays are what the device has: its rows, its tokens, its shard of
each parameter. What needs other devices calls a function of this package, which sends nothing when
the axis has size 1 or when the code runs outside of such a step. So the same model runs on one
device, and a mechanism's code never asks how many there are. The model calls:

  - `blocks.run_blocks` for all its blocks,
  - `gather.gathered` and `gather.embedding_lookup` for the embedding,
  - `placement.psum_over` after a product with a parameter that `tensor` splits,
  - `placement.mesh_axis` and `placement.shard_start` to know its shard of the vocabulary or heads,
  - `sequence.local_tokens` and `sequence.gather_sequence` where a sequence may be split.

**Placement** (`placement`). The axes of a parameter have names ("d_model", "heads", ...), and the
config's sharding rules map each name to mesh axes. A Placement says how a parameter is split while
it is stored, and how while it is used: only `tensor` splits a parameter in use. A mesh axis that
does not divide the axis the rules name splits another one in storage, so that every device stores
an equal share; in use the last shard is padded with zeros.

**Gathering** (`gather`). Before a block runs, its parameters go from stored to used: an all-gather
over each axis that splits them in storage, and an all-to-all where `tensor` splits another axis in
storage than in use. Parameters with the same plan are sent together, as one array. The gradient
goes the way back, as reduce-scatters in float32, so each device gets the gradient of what it
stores. Gradients of parameters that several devices store alike are summed once a step (`sharded`).

**Prefetching** (`prefetch`). A block's parameters are gathered while the block before it runs, and
gathered again while the block after it runs backward. In a loop over the blocks XLA's collective
pipelining does this. In an unrolled model `run_prefetched` does it, with barriers that keep XLA
from gathering more than one block ahead. A device holds the whole parameters of two blocks at most.

**Sequences** (`sequence`). Over s devices a sequence is cut into 2s chunks, and each device has one
from the beginning and one from the end, so that causal attention costs all devices the same. For
attention, devices gather what their mechanism caches (for TPA, the factors), which is small, and
form the keys and values of the whole sequence themselves.

**Rematerialisation** (`remat`). Activations have names where they are made (`t6jax.ops.names`).
The config's `remat` says which names the backward pass keeps. Gathered parameters, and keys and
values of a whole split sequence, are never kept.

**Processes** (`processes`). Several processes may drive the devices of one mesh. That module starts
them, lets the first one write and prepare, and has all of them stop or fail together.

**What is sent** (`collectives`). The collectives of a step, counted in the program as written and
as compiled: --dry_run reports them and tests hold them.
"""
