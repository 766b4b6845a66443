"""Arithmetic on MLIR's index-typed values, for the `index` functions of loads.gather."""

import functools

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

from pallas_kernels.hopper.layouts import WARP_ROWS


def constant(x):
    """A Python integer as an index-typed value."""
    return arith.constant(ir.IndexType.get(), x)


def clamped_sum(limit, *terms):
    """min(sum of the terms, limit - 1), of index-typed values and Python numbers."""
    terms = [constant(x) if isinstance(x, int) else x for x in terms]
    return arith.minui(functools.reduce(arith.addi, terms), constant(limit - 1))


def row_in_warp(row):
    """A row's number among those of its warp."""
    return arith.remui(row, constant(WARP_ROWS))
