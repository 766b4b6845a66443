"""What defines a model and a run: frozen dataclasses, checked when they are made, to and from plain
dicts. Importing this package does not import JAX.
"""

from t6jax.config.data import DataConfig, MixtureEntry
from t6jax.config.differences import differences, model_differences
from t6jax.config.layout import MeshConfig, ShardingConfig
from t6jax.config.model import DTYPES, REMAT, ModelConfig
from t6jax.config.optimizer import OptimizerConfig
from t6jax.config.run import (
    CheckpointConfig,
    LogConfig,
    RunConfig,
    ValidationConfig,
    check_trainable,
)

__all__ = [
    "DTYPES",
    "REMAT",
    "CheckpointConfig",
    "DataConfig",
    "LogConfig",
    "MeshConfig",
    "MixtureEntry",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ShardingConfig",
    "ValidationConfig",
    "check_trainable",
    "differences",
    "model_differences",
]
