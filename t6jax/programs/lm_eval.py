"""lm-evaluation-harness's command line with the model t6jax.

usage: lm_eval --model t6jax --model_args ckpt=DIR --tasks ...

The harness only finds models in its own registry, so this package installs its commands lm_eval and
lm-eval (pyproject.toml). Without an installation, use python -m t6jax.programs.lm_eval.
"""

import sys

from t6jax.command_line import exit_status
from t6jax.extras import needs


def main() -> int:
    return exit_status(_evaluate)


def _evaluate() -> None:
    with needs("eval"):
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    if "t6jax" not in model_registry:
        model_registry.register("t6jax", target="t6jax.evaluation.harness:T6LM")
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
