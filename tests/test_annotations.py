"""The tests check calls against the annotations, shapes included (--jaxtyping-packages)."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from t6jax.ops.rope import RoPE
from t6jax.ops.swiglu import swiglu


def test_a_shape_that_does_not_fit_its_annotation_raises():
    with pytest.raises(TypeCheckError, match="typechecking parameter 'up'"):
        swiglu(jnp.zeros((2, 3)), jnp.zeros((2, 1)))


def test_an_argument_of_another_type_raises():
    with pytest.raises(TypeCheckError, match="typechecking parameter 'dim'"):
        RoPE().frequencies(8.0)


@pytest.mark.usefixtures("unchecked_annotations")
def test_the_check_can_be_switched_off_to_test_a_functions_own_checks():
    assert swiglu(jnp.zeros((2, 3)), jnp.zeros((2, 1))).shape == (2, 3)
