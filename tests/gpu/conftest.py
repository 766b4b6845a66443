"""Tests that need an NVIDIA GPU; elsewhere they are skipped, and say so."""

import jax
import pytest


def pytest_collection_modifyitems(items):
    if jax.default_backend() != "gpu":
        for item in items:
            if "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
