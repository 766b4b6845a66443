"""Every layout gives the losses of a single device, and sends no more than it says."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, process_options

MIXED = "fsdp 2 x tensor 2 x sequence 2"


def measure(*flags: str) -> list:
    """What layouts.py prints."""
    options = process_options()
    options["env"] |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/training/layouts.py", *flags]
    done = subprocess.run(command, **options, check=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def printed() -> list:
    return measure()


@pytest.fixture(scope="module")
def runs(printed) -> list[dict]:
    return printed[:-2]


@pytest.fixture(scope="module")
def growing(printed) -> dict[tuple, dict]:
    return by_layout(printed[-2])


def by_layout(growing: list[dict]) -> dict[tuple, dict]:
    return {(g["layout"], g["unroll"]): g for g in growing}


def of(runs: list[dict], layout: str) -> dict:
    return next(r for r in runs if r["case"][:2] == ["tpa", layout])


def are_full_logits(shape: list[int], run: dict) -> bool:
    """Whether an array may be all logits of the tokens of a device's micro-batch or more, as one
    matrix or as several shards.
    """
    tokens, widths = run["logits"]["tokens"], run["logits"]["widths"]
    of_vocabulary = bool(set(widths) & set(shape)) and shape != run["embedding"]
    return of_vocabulary and math.prod(shape) >= tokens * widths[0]


def test_full_logits_are_told_from_what_else_is_sent():
    # 8 rows of 16 tokens on a device, a vocabulary of 73 in 4 shards of 19
    run = {"logits": {"tokens": 8 * 16, "widths": [73, 76, 19]}, "embedding": [73, 32]}
    for full in ([8, 16, 76], [8, 16, 73], [4, 8, 16, 19], [128, 76], [16, 16, 73]):
        assert are_full_logits(full, run), full
    # one device's shard; hidden states; numbers of a token; a layer's parameters; the embedding;
    # its shards
    for other in ([8, 16, 19], [8, 16, 32], [8, 16], [4, 1368], [73, 32], [73, 8], [19, 32]):
        assert not are_full_logits(other, run), other


@pytest.mark.slow
def test_every_layout_gives_the_losses_of_a_single_device(runs):
    assert len(runs) == 6 + 2 + 2 * 2
    are_those_of_a_single_device(runs)


@pytest.mark.exhaustive
def test_every_mechanism_gives_the_losses_of_a_single_device():
    *runs, growing, _ = measure("--all")
    assert len(runs) == 6 + 2 + 4 * 4
    are_those_of_a_single_device(runs)
    growing = by_layout(growing)
    assert layers_added(growing["fsdp 8", True]) < 1 / 2  # as below, without a loop over layers


def layers_added(growth: dict) -> float:
    """What another layer adds to a device's memory, in layers of whole float32 parameters."""
    return np.diff(growth["temporary"])[0] / 4 / np.diff(growth["layers"])[0]


def are_those_of_a_single_device(runs: list[dict]) -> None:
    # Sums are taken in another order. A step's loss is off by a few epsilon (6e-8) of sums of 32 to
    # 256 terms; Adam's division turns a gradient's relative error into one of its step, at most
    # 1e-2 of a weight, which 8 steps add up.
    single = {(r["case"][0], *r["case"][2:]): r["losses"] for r in runs if r["case"][1] == "one"}
    for r in runs:
        want = single[(r["case"][0], *r["case"][2:])]
        assert len(want) == 8 and want[-1] < want[0] - 0.2
        np.testing.assert_allclose(r["losses"], want, rtol=1e-5, err_msg=str(r["case"]))
        # Adam hides a gradient's scale, and most of its rounding. In float32 sums of 256 terms in
        # another order are off by a few epsilon of the largest; in bfloat16 by 4e-3.
        assert r["gradient_off"] < 1e-5, r["case"]


@pytest.mark.slow
def test_the_validation_loss_over_several_devices_is_that_of_one(runs):
    one, mixed = (r["validation"] for r in runs if r["case"][2])
    np.testing.assert_allclose(mixed, one, rtol=1e-5)
    assert one[1] == 10 * 16, "10 rows of 16 tokens are not masked"


@pytest.mark.slow
def test_no_stack_of_parameters_and_no_full_logits_are_gathered(runs):
    for r in runs:
        stacks = [sorted(shape) for shape in r["stacked"]]
        layers = sum(map(math.prod, r["stacked"]))  # of both layers, without the heads' padding
        for kind, shapes, _ in r["collectives"]:
            for _, shape in shapes:
                if kind in ("all-gather", "all-to-all"):
                    assert sorted(shape) not in stacks and math.prod(shape) < layers, (
                        r["case"],
                        kind,
                        shape,
                    )
                assert not are_full_logits(shape, r), (r["case"], kind, shape)


@pytest.mark.slow
def test_what_is_compiled_sends_what_the_program_says(runs):
    for r in runs:
        # for CPU, XLA moves some of what is the same in all micro-batches out of their loop
        if r["case"][3] > 1:
            continue
        compiled = {}
        for kind, shapes, times in r["collectives"]:
            compiled[kind] = compiled.get(kind, 0) + times * sum(
                math.prod(shape) * 4 for _, shape in shapes
            )
        written = {}
        for kind, _, _, size in r["written"]:
            written[kind] = written.get(kind, 0) + size
        few = 4 * 32  # XLA's own sums for the gradient's norm, of one number of each parameter
        for kind in written | compiled:
            # XLA merges what is sent twice, as the embedding for its two uses, and adds nothing
            assert (
                0.8 * written.get(kind, 0) - few
                <= compiled.get(kind, 0)
                <= written.get(kind, 0) + few
            ), (r["case"], kind)


@pytest.mark.slow
def test_over_data_gradients_are_summed_once_a_step(runs):
    (sums,) = of(runs, "data 8")["collectives"]
    assert sums[0] == "all-reduce" and sums[2] == 1
    parameters = math.prod(of(runs, "data 8")["embedding"]) + sum(
        math.prod(shape) for shape in of(runs, "data 8")["stacked"]
    )
    assert sum(math.prod(shape) for _, shape in sums[1]) == parameters + 1  # and the loss


@pytest.mark.slow
def test_over_fsdp_a_device_stores_its_share_and_a_layer_is_gathered_at_a_time(runs):
    one, fsdp = of(runs, "one"), of(runs, "fsdp 8")
    batch = 16 * 17 * 4
    assert fsdp["arguments"] - batch // 8 == pytest.approx((one["arguments"] - batch) / 8, rel=0.01)
    layers, embedding = (
        sum(math.prod(shape) for shape in one["stacked"]),
        math.prod(one["embedding"]),
    )
    size = lambda kind: sum(
        n * math.prod(s) for k, shapes, n in fsdp["collectives"] if k == kind for _, s in shapes
    )
    # each layer for the forward pass and again for the backward pass; the embedding for its two
    # uses, and again
    assert size("all-gather") <= 2 * layers + 4 * embedding
    assert size("reduce-scatter") == (layers + 2 * embedding) / 8
    assert not [c for c in fsdp["collectives"] if c[0] in ("all-to-all", "collective-permute")]
    # all parameters of a layer at once: both layers', the first one's again for the backward pass,
    # and the embedding for its two uses
    written = {kind: count for kind, axes, count, _ in fsdp["written"]}
    assert (written["all-gather"], written["reduce-scatter"]) == (2 + 1 + 2, 2 + 2)


@pytest.mark.slow
def test_over_fsdp_a_device_never_has_the_whole_parameters_or_gradients_of_all_layers(growing):
    # 1 or more if a device keeps the whole parameters or gradients of all layers, as it keeps the
    # gradients over data. Over fsdp it keeps an eighth of the gradients, and activations of 12
    # tokens: some 25 d_model each, to 8 d_model^2 parameters, another eighth. The bound is twice
    # both, and half of what whole ones would add.
    assert layers_added(growing["data 8", False]) > 1
    assert layers_added(growing["fsdp 8", False]) < 1 / 2


@pytest.mark.slow
def test_over_tensor_a_device_never_has_full_logits(growing):
    # The bytes that another token of the vocabulary adds to full logits of 8 rows of 16 tokens. A
    # device has a quarter of them, three times: logits, exponentials, gradient.
    bytes_of_logits = 4 * 8 * 16
    smaller, larger = growing["tensor 4 x data 2", True]["temporary"]
    assert (larger - smaller) / (2048 - 1024) < bytes_of_logits  # padded sizes


@pytest.mark.slow
def test_along_the_sequence_factors_are_sent_and_keys_and_values_are_not(runs):
    gathered = [
        tuple(s)
        for kind, shapes, _ in of(runs, MIXED)["collectives"]
        if kind == "all-gather"
        for _, s in shapes
    ]
    # [B, devices, tokens of each, numbers]: R_K + R_V = 3 times this device's heads, padded to 16,
    # and head_dim = 8
    assert {shape for shape in gathered if shape[:3] == (8, 2, 8) and len(shape) > 3} == {
        (8, 2, 8, 3 * (16 + 8))
    }


@pytest.mark.slow
def test_along_the_sequence_keys_and_values_of_all_of_it_are_not_kept_for_the_gradient(printed):
    kept = [tuple(shape) for shape in printed[-1]]
    # [layers, B, T, heads on a device, head_dim]: of the device's own tokens, as queries are, and
    # of all
    assert (2, 8, 12, 3, 8) in kept and (2, 8, 24, 3, 8) not in kept
