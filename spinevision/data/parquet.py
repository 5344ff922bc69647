"""Writes frames, masks and their columns as the parquet files of a dataset on the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import pyarrow

SHARD_BYTES = 500 * 2**20
"""A file is closed once it holds this much, as in ``datasets``."""
GROUP_BYTES, GROUP_ROWS = 64 * 2**20, 100
"""What is held in memory here, and read at once by a stream or the Hub's viewer; both numbers are ours."""


@dataclass(frozen=True)
class WrittenPart:
    """One part of a dataset as it was written; sizes in bytes, in memory and on disk."""

    name: str
    frames: int
    stored_bytes: int
    file_bytes: int


def write_part(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], features: datasets.Features) -> WrittenPart:
    """Write one part, as ``train-00000-of-00002.parquet`` and so on; memory holds one group of rows.

    The same rows give the same bytes, and pages are cut by content, so that what has not changed is not uploaded again.

    Args:
        folder: where to.
        name: train, validation or test.
        rows: cells by column name; a picture is its encoded ``bytes`` and ``path``, or None.
        features: the columns.
    """
    import datasets
    from pyarrow.parquet import ParquetWriter

    pictures = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    texts = [column for column in features if column not in pictures]
    leaves = [f"{column}.{leaf}" for column in pictures for leaf in ("bytes", "path")]
    shards: list[Path] = []
    writer, frames, stored, in_shard = None, 0, 0, 0
    for group in _groups(rows, pictures, features.arrow_schema):
        if writer is None:
            shards.append(folder / f"{name}-{len(shards):05d}.parquet")
            writer = ParquetWriter(
                shards[-1],
                features.arrow_schema,
                compression=dict.fromkeys(leaves, "none") | dict.fromkeys(texts, "snappy"),
                use_dictionary=texts,
                use_content_defined_chunking=True,
                write_page_index=True,
            )
        writer.write_table(group)
        frames += len(group)
        stored += group.nbytes
        in_shard += group.nbytes
        if in_shard >= SHARD_BYTES:
            writer.close()
            writer, in_shard = None, 0
    if writer is not None:
        writer.close()
    files = [path.rename(folder / f"{name}-{index:05d}-of-{len(shards):05d}.parquet") for index, path in enumerate(shards)]
    return WrittenPart(name, frames, stored, sum(path.stat().st_size for path in files))


def _groups(rows: Iterable[Mapping[str, Any]], pictures: list[str], schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    import pyarrow

    group: list[Mapping[str, Any]] = []
    held = 0
    for row in rows:
        group.append(row)
        held += sum(len(row[column]["bytes"]) for column in pictures if row[column])
        if held >= GROUP_BYTES or len(group) >= GROUP_ROWS:
            yield pyarrow.Table.from_pylist(group, schema)
            group, held = [], 0
    if group:
        yield pyarrow.Table.from_pylist(group, schema)
