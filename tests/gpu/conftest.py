"""Tests that need an NVIDIA GPU; elsewhere they are skipped, and say so."""

import jax
import pytest

HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"
needs_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")


def pytest_collection_modifyitems(items):
    if jax.default_backend() != "gpu":
        for item in items:
            if "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
