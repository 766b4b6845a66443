"""The checks of a run's config that need a mesh of several devices, planned for without them."""

import re

import pytest

from t6jax import InputError
from t6jax.config import RunConfig
from t6jax.training.layout import mesh_for


def check(values: dict) -> None:
    mesh_for(RunConfig.from_dict(values), plan=True)


@pytest.mark.parametrize(
    ("validation_rows", "mesh", "message"),
    [
        (
            4,
            {"data": 8, "fsdp": 1},
            "batch_size / accumulation_steps = 4 must be a multiple of mesh.data x mesh.fsdp = 8",
        ),
        (
            6,
            {"data": 2, "fsdp": 2},
            "validation.batch_size=6 must be a multiple of mesh.data x mesh.fsdp = 4",
        ),
    ],
)
def test_rows_that_do_not_divide_over_the_mesh_are_named(
    run_config, validation_rows, mesh, message
):
    run_config["mesh"] |= mesh
    run_config["validation"]["batch_size"] = validation_rows
    with pytest.raises(InputError, match=message):
        check(run_config)
    run_config["validation"]["batch_size"], run_config["mesh"] = (
        4,
        run_config["mesh"] | {"data": 2, "fsdp": 1},
    )
    check(run_config)


def test_all_that_does_not_divide_is_named_at_once_with_values_that_do(run_config):
    run_config |= {"batch_size": 480, "accumulation_steps": 20}
    run_config["validation"]["batch_size"] = 48
    run_config["mesh"] |= {"data": 8, "fsdp": 8, "sequence": 3}
    message = (
        "batch_size / accumulation_steps = 24 must be .* = 64; validation.batch_size=48 must be .* "
        "= 64; model.context_length=16 "
        "must be .* = 6. Take for instance --config.batch_size=512 --config.accumulation_steps=1 "
        r"--config.validation.batch_size=64 --config.model.context_length=18 "
        r"\(accumulation_steps: any divisor of 8;"
    )
    with pytest.raises(InputError, match=message):
        check(run_config)
    run_config |= {"batch_size": 512, "accumulation_steps": 1}
    run_config["validation"]["batch_size"], run_config["model"]["context_length"] = 64, 18
    check(run_config)


@pytest.mark.parametrize(
    ("rows", "parts", "split"), [(7, 3, 1), (1, 2, 1), (480, 20, 16), (480, 480, 512), (500, 7, 24)]
)
def test_the_values_named_in_place_of_those_that_do_not_divide_are_accepted(
    run_config, rows, parts, split
):
    run_config |= {"batch_size": rows, "accumulation_steps": parts}
    run_config["mesh"] |= {"data": split}
    with pytest.raises(InputError) as raised:
        check(run_config)
    for key, value in re.findall(r"--config\.(\S+)=(\d+)", str(raised.value)):
        section = run_config["validation"] if key.startswith("validation.") else run_config
        section[key.split(".")[-1]] = int(value)
    check(run_config)
    assert run_config["batch_size"] // run_config["accumulation_steps"] // split <= max(
        rows // parts, 1
    )


def test_a_sequence_that_does_not_split_into_two_chunks_a_device_is_named(run_config):
    run_config["mesh"] |= {"data": 1, "sequence": 3}
    with pytest.raises(
        InputError, match=r"model.context_length=16 must be a multiple of 2 x mesh.sequence = 6"
    ):
        check(run_config)
