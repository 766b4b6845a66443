"""Faults of what training reads."""

from tests.mutants.table import Faults

BATCHES = "tests/data/test_batches.py"
SHARDS = "tests/data/test_shards.py"

FAULTS = (
    Faults(
        "t6jax/data/batches.py",
        (BATCHES,),
        (
            ("dataset[index::processes]", "dataset[0::processes]"),
            (
                "mask = np.pad(np.ones(len(rows), np.float32), (0, missing))",
                "mask = np.ones(batch_size, np.float32)",
            ),
            ('self._taken = state["batches"]', "pass"),
            (
                "    def set_state(self, state: dict[str, int]) -> None:\n        self.close()\n",
                "    def set_state(self, state: dict[str, int]) -> None:\n",
            ),
            ("own_seed = seed + 2**16 * number", "own_seed = seed"),
            ("[weight for _, weight in sources])", "[1.0 for _, weight in sources])"),
            ("drop_remainder=False", "drop_remainder=True"),
        ),
    ),
    Faults(
        "t6jax/data/shards.py",
        (SHARDS,),
        (
            ("if int(tokens.max()) >= vocab_size:", "if int(tokens.max()) > vocab_size:"),
            (
                "for at in range(begin, end, CHECKED_BYTES):",
                "for at in range(begin, end, CHECKED_BYTES)[:1]:",
            ),
            ("np.maximum(0, tokens - 1) // length", "np.maximum(0, tokens) // length"),
        ),
    ),
)
