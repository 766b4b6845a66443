"""The checks of a run's config that need a mesh of several devices, planned for without them."""

import pytest

from t6jax import InputError
from t6jax.training.settings import check


@pytest.mark.parametrize(
    ("validation_rows", "mesh", "message"),
    [
        (4, {"data": 8, "fsdp": 1}, "batch_size / accumulation_steps = 4 must be a multiple of mesh.data x mesh.fsdp = 8"),
        (6, {"data": 2, "fsdp": 2}, "validation.batch_size=6 must be a multiple of mesh.data x mesh.fsdp = 4"),
    ],
)
def test_rows_that_do_not_divide_over_the_mesh_are_named(run_config, validation_rows, mesh, message):
    run_config["mesh"] |= mesh
    run_config["validation"]["batch_size"] = validation_rows
    with pytest.raises(InputError, match=message):
        check(run_config, plan=True)
    run_config["validation"]["batch_size"], run_config["mesh"] = 4, run_config["mesh"] | {"data": 2, "fsdp": 1}
    check(run_config, plan=True)


def test_a_sequence_that_does_not_split_into_two_chunks_a_device_is_named(run_config):
    run_config["mesh"] |= {"data": 1, "sequence": 3}
    with pytest.raises(InputError, match=r"model.context_length=16 must be a multiple of 2 x mesh.sequence = 6"):
        check(run_config, plan=True)
