"""The models that benchmarks.train times, as configs."""

from typing import Any

from configs import common
from t6jax.config import RunConfig

CONTEXT = 1024  # tokens a row, in all of them
XL = {"size": "xl", "mechanism": "tpa", "num_heads": 78, "rank_q": 6, "rank_k": 2, "rank_v": 2}
MEDIUM = XL | {"size": "medium", "num_heads": 47}
MHA_XL = {"size": "xl", "mechanism": "mha", "num_heads": 25}
KEEP_ALL = {"remat": "none", "unroll": True}
# name: (the paper's settings, rows of a step, keys of the model that differ)
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "T6 XL width, 12 layers": (XL, 24, {"num_layers": 12} | KEEP_ALL),
    "T6 XL": (XL, 24, KEEP_ALL),
    "T6 XL, rebuilding what is cheap": (XL, 24, KEEP_ALL | {"remat": "dots"}),
    "T6 medium": (MEDIUM, 32, KEEP_ALL),
    "MHA XL width, 12 layers": (MHA_XL, 24, {"num_layers": 12} | KEEP_ALL),
}
# the arguments of benchmarks.torch_t6 for the cases that it times too
TORCH = {
    "T6 XL width, 12 layers": ("12", "1600", "78", "24"),
    "T6 medium": ("24", "1024", "47", "32"),
}


def config_of(paper: dict[str, Any], rows: int, model: dict[str, Any]) -> RunConfig:
    """The config of a case, one micro-batch of `rows` rows a step."""
    config = common.paper(**paper)
    config.batch_size, config.accumulation_steps = rows, 1
    config.model.update(model)
    return RunConfig.from_dict(config.to_dict())


def label(name: str) -> str:
    """A case's name with its heads, for a plot."""
    return f"{name} (H = {CASES[name][0]['num_heads']})" if name in CASES else name
