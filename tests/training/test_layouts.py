"""Over several devices: every layout gives one device's losses, and sends no more than it says."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, process_options

MIXED = "fsdp 2 x tensor 2 x sequence 2"


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    options = process_options()
    options["env"] |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "tests/training/layouts.py"], **options, check=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(runs: list[dict], layout: str) -> dict:
    return next(r for r in runs if r["case"][:2] == ["tpa", layout])


@pytest.mark.slow
def test_every_mechanism_in_every_layout_gives_one_devices_losses(runs):
    assert len(runs) == 5 * 6 + 2
    # Sums are taken in another order. A step's loss is off by a few epsilon (6e-8) of sums of 32 to 256 terms; Adam's
    # division turns a gradient's relative error into one of its step, at most 1e-2 of a weight, which 20 steps add up.
    single = {(r["case"][0], *r["case"][2:]): r["losses"] for r in runs if r["case"][1] == "one"}
    for r in runs:
        want = single[(r["case"][0], *r["case"][2:])]
        assert len(want) == 20 and want[-1] < want[0] - 0.5
        np.testing.assert_allclose(r["losses"], want, rtol=1e-5, err_msg=str(r["case"]))


@pytest.mark.slow
def test_no_stack_of_parameters_and_no_full_logits_are_gathered(runs):
    for r in runs:
        stacks = [sorted(shape) for shape in r["stacked"]]
        layers = sum(map(math.prod, r["stacked"]))  # two of them, in which heads may be filled up
        for kind, shapes, _ in r["collectives"]:
            for _, shape in shapes:
                if kind in ("all-gather", "all-to-all"):
                    assert sorted(shape) not in stacks and math.prod(shape) < layers, (r["case"], kind, shape)
                # the vocabulary, filled up or not, with rows and tokens
                assert not (len(shape) > 2 and {61, 62} & set(shape)), (r["case"], kind, shape)


@pytest.mark.slow
def test_what_is_compiled_sends_what_the_program_says(runs):
    for r in runs:
        if r["case"][3] > 1:  # for CPU, XLA takes some of what is the same in all micro-batches out of their loop
            continue
        compiled = {}
        for kind, shapes, times in r["collectives"]:
            compiled[kind] = compiled.get(kind, 0) + times * sum(math.prod(shape) * 4 for _, shape in shapes)
        written = {}
        for kind, _, _, size in r["written"]:
            written[kind] = written.get(kind, 0) + size
        few = 4 * 32  # sums of a number of each parameter, for the gradient's norm, are XLA's own
        for kind in written | compiled:
            # XLA merges what is sent twice, as the embedding for its two uses, and sends nothing else
            assert 0.8 * written.get(kind, 0) - few <= compiled.get(kind, 0) <= written.get(kind, 0) + few, (r["case"], kind)


@pytest.mark.slow
def test_over_data_gradients_are_summed_once_a_step(runs):
    (sums,) = of(runs, "data 8")["collectives"]
    assert sums[0] == "all-reduce" and sums[2] == 1
    parameters = 61 * 32 + sum(math.prod(shape) for shape in of(runs, "data 8")["stacked"])
    assert sum(math.prod(shape) for _, shape in sums[1]) == parameters + 1  # and the loss


@pytest.mark.slow
def test_over_fsdp_a_device_stores_its_share_and_a_layer_is_gathered_at_a_time(runs):
    one, fsdp = of(runs, "one"), of(runs, "fsdp 8")
    batch = 16 * 17 * 4
    assert fsdp["arguments"] - batch // 8 == pytest.approx((one["arguments"] - batch) / 8, rel=0.01)
    layers = sum(math.prod(shape) for shape in one["stacked"])
    size = lambda kind: sum(n * math.prod(s) for k, shapes, n in fsdp["collectives"] if k == kind for _, s in shapes)
    # each layer for the forward pass and again for the backward pass; the embedding for its two uses, and again
    assert size("all-gather") <= 2 * layers + 4 * 61 * 32
    assert size("reduce-scatter") == (layers + 2 * 61 * 32) / 8
    assert not [c for c in fsdp["collectives"] if c[0] in ("all-to-all", "collective-permute")]
    # all parameters of a layer at once: of two layers, the last one is kept for the backward pass; the embedding for its two uses
    written = {kind: count for kind, axes, count, _ in fsdp["written"]}
    assert (written["all-gather"], written["reduce-scatter"]) == (2 + 1 + 2, 2 + 2)


@pytest.mark.slow
def test_along_the_sequence_factors_travel_and_keys_and_values_do_not(runs):
    gathered = [tuple(s) for kind, shapes, _ in of(runs, MIXED)["collectives"] if kind == "all-gather" for _, s in shapes]
    # [B, devices, tokens of each, numbers]: R_K + R_V = 3 times this device's heads, filled up to 16, and head_dim = 8
    assert {shape for shape in gathered if shape[:3] == (8, 2, 8) and len(shape) > 3} == {(8, 2, 8, 3 * (16 + 8))}
