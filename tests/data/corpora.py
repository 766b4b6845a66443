"""Small corpora in the formats that users have, made on the spot."""

import gzip
import json
import pathlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t6jax.data.shards import DTYPES, HEADER_BYTES, find_shards, shard_header

WORDS = [
    "the",
    "of",
    "naïve",
    "été",
    "日本語",
    "Ωμέγα",
    "🙂",
    "transformer",
    "attention",
    "product\n",
    "\t's",
    "1234",
    "x=y;",
]


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents of all kinds: short and long, non-ASCII, empty and missing ones not among them."""
    draw = random.Random(seed)
    found = [" ".join(draw.choices(WORDS, k=draw.choice((1, 5, 40, 300)))) for _ in range(count)]
    return [text or "x" for text in found]


def with_empty_ones(texts: list[str]) -> list[str | None]:
    """The same documents, others without text between them."""
    return [t for i, text in enumerate(texts) for t in ([text, "", None] if i % 7 == 0 else [text])]


def write_parquet(path: pathlib.Path, texts: list[str | None], rows_a_group: int = 10) -> None:
    """A file with FineWeb-Edu's columns."""
    n = len(texts)
    columns = {
        "text": pa.array(texts, pa.string()),
        "id": [f"<urn:uuid:{i:08d}>" for i in range(n)],
        "dump": ["CC-MAIN-2024-10"] * n,
        "url": [f"https://example.org/{i}" for i in range(n)],
        "file_path": ["s3://commoncrawl/crawl-data/x.warc.gz"] * n,
        "language": ["en"] * n,
        "language_score": np.linspace(0.65, 1, n),
        "token_count": np.arange(n),
        "score": np.linspace(2.5, 5, n),
        "int_score": np.full(n, 3),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)


def write_jsonl(path: pathlib.Path, texts: list[str | None]) -> None:
    lines = "".join(
        json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) + "\n"
        for i, text in enumerate(texts)
    ).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        path.write_bytes(pa.compress(lines, "zstd", asbytes=True))
    else:
        path.write_bytes(lines)


def open_shard(path: pathlib.Path) -> np.ndarray:
    """The tokens of a shard as llm.c reads them, without checksums."""
    version, _ = shard_header(path)
    return np.fromfile(path, DTYPES[version], offset=HEADER_BYTES)


def all_tokens(folder: pathlib.Path) -> list[int]:
    """The tokens of a prepared folder, validation first."""
    return np.concatenate(
        [open_shard(p) for split in ("val", "train") for p in find_shards(folder, split)]
    ).tolist()


def byte_tokens(texts: list[str]) -> list[int]:
    """What the byte tokenizer makes of documents."""
    return [t for text in texts for t in (256, *text.encode())]


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
