import sys
from types import SimpleNamespace

import pytest

from tests.pallas_kernels import interpreter


@pytest.fixture
def triton_interpreter(monkeypatch):
    """Triton kernels are interpreted where they are launched."""
    pytest.importorskip("triton")
    jax_triton = SimpleNamespace(triton_call=interpreter.triton_call)
    monkeypatch.setitem(sys.modules, "jax_triton", jax_triton)
