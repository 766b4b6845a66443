"""What a run trains on: DataConfig."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from t6jax.errors import InputError
from t6jax.fields import Range, Section, build, check_fields

# vocabulary sizes of the tokenizers that are known by a name
VOCABULARIES = {"bytes": 257, "gpt2": 50257}
_MIXTURE = "data.mixture must be a dict of names, each with path or source and weight"
TOKENIZER_FILES = (".tiktoken", ".json")


@dataclasses.dataclass(frozen=True)
class MixtureEntry:
    """One source of a mixture, under a name."""

    path: Annotated[str, "A folder of token shards."] = ""
    source: Annotated[str, "Without a path: text to prepare, as data.source."] = ""
    text_key: Annotated[str, "As data.text_key."] = "text"
    weight: Annotated[float, Range(above=0), "Its share of the windows."] = 1.0

    def __post_init__(self):
        check_fields(self, "data.mixture")


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Token shards, or the text that they are prepared from."""

    section: ClassVar[str] = "data"

    path: Annotated[str, "A folder of token shards."] = "data/fineweb-edu-100bt"
    source: Annotated[
        str,
        "With an empty path: text that is prepared in the run's directory; a file or folder of "
        'text, .jsonl or .parquet, a URL, a data set of the hub, or "python".',
    ] = ""
    text_key: Annotated[
        str, "The key of a .jsonl source, or the column of a .parquet, that holds the text."
    ] = "text"
    mixture: Annotated[
        dict[str, MixtureEntry],
        "Several sources in place of path and source: a name -> path or source, and weight.",
    ] = dataclasses.field(default_factory=dict)
    tokenizer: Annotated[
        str, "gpt2, bytes, or the path of a .tiktoken file or a tokenizer.json."
    ] = "gpt2"
    validation_fraction: Annotated[
        float, Range(above=0, below=1), "Of a source's bytes, by file, for validation."
    ] = 0.01
    with_replacement: Annotated[
        bool, "Windows are drawn anywhere and independently, as in the published code."
    ] = False
    document_masking: Annotated[
        bool, "Attention stops at the borders of documents, and positions restart there."
    ] = False
    num_workers: Annotated[int, Range(low=0), "Processes that read ahead; 0: threads."] = 0

    def __post_init__(self):
        super().__post_init__()
        if self.path and self.source:
            raise InputError(
                f"data.path={self.path!r} and data.source={self.source!r} are both given: take "
                "the shards of the one, or with --config.data.path= the text of the other"
            )
        if not isinstance(self.mixture, dict):
            raise InputError(f"{_MIXTURE}; got {self.mixture!r}")
        for name, entry in self.mixture.items():
            if not isinstance(name, str) or not isinstance(entry, MixtureEntry):
                raise InputError(f"{_MIXTURE}; got {name!r}: {entry!r}")
            if not entry.path and not entry.source:
                raise InputError(f"data.mixture.{name} needs a path or a source")
        if self.tokenizer not in VOCABULARIES and not self.tokenizer.endswith(TOKENIZER_FILES):
            raise InputError(
                f"data.tokenizer must be one of {', '.join(VOCABULARIES)}, or the path of a "
                f".tiktoken file or a tokenizer.json; got {self.tokenizer!r}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As Section.from_dict; the mixture is a dict of dicts."""
        mixture = values.get("mixture") if isinstance(values, Mapping) else None
        if mixture is None:
            return super().from_dict(values)
        if not isinstance(mixture, Mapping):
            raise InputError(f"{_MIXTURE}; got {mixture!r}")
        entries = {
            name: entry
            if isinstance(entry, MixtureEntry)
            else build(MixtureEntry, entry, f"data.mixture.{name}")
            for name, entry in mixture.items()
        }
        return super().from_dict(dict(values) | {"mixture": entries})

    def to_dict(self) -> dict[str, Any]:
        """The inverse of from_dict."""
        mixture = {name: dataclasses.asdict(entry) for name, entry in self.mixture.items()}
        return super().to_dict() | {"mixture": mixture}
