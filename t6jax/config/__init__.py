"""What defines a model and a run: frozen dataclasses, to and from plain dicts."""

from t6jax.config.model import DTYPES, REMAT, ModelConfig

__all__ = ["DTYPES", "REMAT", "ModelConfig"]
