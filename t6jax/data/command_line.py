"""How the data programs end: one sentence for what the user can put right."""

import sys
from collections.abc import Callable

from t6jax.errors import InputError


def run(main: Callable[[list[str]], int | None], arguments: list[str]) -> None:
    """Runs main(arguments) and exits with what it returns, or behind an InputError's sentence."""
    try:
        sys.exit(main(arguments) or 0)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
