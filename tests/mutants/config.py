"""Faults of the config and of how its fields are checked."""

from tests.mutants.table import Faults

FIELDS = "tests/config/test_fields.py"
PAIRS = f"{FIELDS}::test_pairs_that_do_not_fit_are_named"
MODEL = "tests/config/test_model.py"
RUN = "tests/config/test_run.py"

FAULTS = (
    Faults(
        "t6jax/fields.py",
        (FIELDS,),
        (
            ("(self.low is None or value >= self.low)", "(self.low is None or value > self.low)"),
            (
                "(self.below is None or value < self.below)",
                "(self.below is None or value <= self.below)",
            ),
            (
                "(self.above is None or value > self.above)",
                "(self.above is None or value >= self.above)",
            ),
            ("and (self.type is bool or not isinstance(value, bool))", "and True", (MODEL,)),
            (
                "return value == 0 or _FLOAT32[0] <= abs(value) <= _FLOAT32[1]",
                "return abs(value) <= _FLOAT32[1]",
            ),
            ("if name not in keys:\n", "if False:\n"),
        ),
    ),
    Faults(
        "t6jax/config/optimizer.py",
        (PAIRS,),
        (
            ("clip_norm: Annotated[float, Range(above=0)", "clip_norm: Annotated[float, Range()"),
            ("Range(low=0, below=1)", "Range(low=0)"),
            ("if self.min_learning_rate > self.learning_rate:", "if False:"),
            (
                "weight_decay: Annotated[float, _NOT_NEGATIVE,",
                "weight_decay: Annotated[float, Range(),",
            ),
        ),
    ),
    Faults(
        "t6jax/config/run.py",
        (PAIRS,),
        (
            ("if warmup >= decay:", "if warmup > decay:"),
            ("if not 1 <= first <= last:", "if not first <= last:"),
            (
                "return range(first, last + 1)",
                "return range(first, last)",
                (f"{FIELDS}::test_profiled_steps",),
            ),
            ("Range(low=0, high=2**32 - 1)", "Range(low=0)"),
            (
                'split, chunks = mesh["data"] * mesh["fsdp"], 2 * mesh["sequence"]',
                'split, chunks = mesh["data"], 2 * mesh["sequence"]',
                (RUN,),
            ),
            (
                'split, chunks = mesh["data"] * mesh["fsdp"], 2 * mesh["sequence"]',
                'split, chunks = mesh["data"] * mesh["fsdp"], mesh["sequence"]',
                (RUN,),
            ),
        ),
    ),
    Faults(
        "t6jax/config/model.py",
        (MODEL,),
        (
            (
                "return self.mlp_width or 8 * self.d_model // 3",
                "return self.mlp_width or 8 * (self.d_model // 3)",
            ),
            (
                "return self.vocab_size * self.d_model + self.num_layers * block",
                "return 2 * self.vocab_size * self.d_model + self.num_layers * block",
                (
                    "tests/test_configs.py::test_a_config_builds_abstractly_with_the_papers_parameter_count",
                ),
            ),
        ),
    ),
)
