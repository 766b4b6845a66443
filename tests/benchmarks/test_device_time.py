"""How the profiler's intervals become a time."""

from benchmarks.device_time import busy_nanoseconds
from benchmarks.train import OTHER, kind_of


def test_overlapping_kernels_count_once_and_gaps_do_not():
    assert busy_nanoseconds([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13
    assert busy_nanoseconds([]) == 0


def test_kernels_are_sorted_into_kinds_by_their_names():
    assert kind_of("cudnn_generated_fort_native_sdpa_sm90_flash_fprop") == "attention"
    assert kind_of("nvjet_hsh_128x256_64x4") == "matrix products"
    assert kind_of("tensor_products_expand") == "Q, K, V from factors"
    assert kind_of("ncclDevKernel_AllReduce") == "collectives"
    assert kind_of("loop_add_fusion") == OTHER
