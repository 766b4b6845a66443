"""Fences between what threads do and what wgmma and TMA do."""

from jax.experimental.mosaic.gpu import utils

from pallas_kernels.hopper.inline import inline_mgpu


def fence_shared_memory():
    """Orders what this thread did in shared memory before what wgmma and TMA do there after the
    barrier at which the thread arrives next.
    """

    @inline_mgpu()
    def run(_):
        utils.inline_ptx("fence.proxy.async.shared::cta;", has_side_effects=True)

    run()


def fence_global_memory():
    """Orders what other thread blocks did in global memory, before a semaphore that this thread has
    seen, before what TMA does there for this thread from now on.
    """

    @inline_mgpu()
    def run(_):
        utils.inline_ptx("fence.proxy.async.global;", has_side_effects=True)

    run()
