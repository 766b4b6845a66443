"""What models the configs make. usage: python -m t6jax.programs.describe configs/*.py"""

import pathlib
import runpy

import jax.numpy as jnp

from t6jax.command_line import Parser, run
from t6jax.config import ModelConfig
from t6jax.errors import InputError

HEADER = (
    "config",
    "attention",
    "L",
    "d_model",
    "h",
    "parameters",
    "/ MHA",
    "cache B/token",
    "/ MHA",
)


def model_config(path: str | pathlib.Path) -> ModelConfig | None:
    """The model of a config file; None for a file that defines no config."""
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: there is no such config file")
    get_config = runpy.run_path(str(path)).get("get_config")
    return None if get_config is None else ModelConfig.from_dict(get_config().to_dict()["model"])


def row(name: str, m: ModelConfig) -> tuple[str, ...]:
    """A line of the table. MHA is the native one of the model's size, h d_h = d_model."""
    mha_parameters = m.parameter_count + m.num_layers * (
        4 * m.d_model**2 - m.attention.parameter_count(m.d_model)
    )
    cached = m.cached_numbers_per_token
    return (
        name,
        m.attention.name,
        str(m.num_layers),
        str(m.d_model),
        str(m.attention.num_heads),
        f"{m.parameter_count:,}",
        f"{m.parameter_count / mha_parameters:.3f}",
        f"{cached * jnp.dtype(m.dtype).itemsize:,}",
        f"{cached / (m.num_layers * 2 * m.d_model):.3f}",
    )


def table(paths: list[str]) -> str:
    """A line a config file: parameters and cache bytes a token, and each over MHA's at the same
    size.
    """
    models = {pathlib.Path(path).stem: model_config(path) for path in paths}
    rows = [HEADER, *(row(name, m) for name, m in models.items() if m is not None)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
    align = lambda i, text: text.ljust(widths[i]) if i < 2 else text.rjust(widths[i])
    return "\n".join("  ".join(align(i, text) for i, text in enumerate(r)) for r in rows)


def main(arguments: list[str]) -> None:
    parser = Parser("t6jax.programs.describe", "Prints what models config files make.")
    parser.add_argument("config", nargs="+", help="a config file, such as configs/xl_tpa.py")
    print(table(parser.parse_args(arguments).config))


if __name__ == "__main__":
    run(main)
