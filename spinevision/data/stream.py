"""A stream of ``datasets``, kept on disk as it comes in, so that its frames can be drawn in any order."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spinevision.data.found import DatasetError
from spinevision.data.wording import counted

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_BATCH = 32
"""Rows that memory holds at a time; ours."""


def stored(stream: datasets.IterableDataset, source: str) -> datasets.Dataset:
    """Read a stream once, in its order, and give it back as a table.

    Shuffled training, splits by patient and the reading of every file before the first step need every frame within reach, so the
    encoded pictures are written to a file as they come; nothing is decoded and memory holds a few rows. The file lies in the cache
    of ``datasets`` and goes when the program ends. Each process of a training on several devices reads the stream for itself.

    Raises:
        DatasetError: a stream that does not say its columns, is a share of a whole, holds no rows, or breaks off.
    """
    import datasets
    import pyarrow
    from datasets.table import embed_table_storage

    if stream.features is None:
        raise DatasetError(
            f"{source} is a stream that does not say what its columns hold, as after map(); give map() the argument features, or "
            "use cast()"
        )
    if getattr(stream, "_distributed", None) is not None:
        raise DatasetError(f"{source} is one process's share of a stream; give the whole stream, which is divided later")
    kinds = (datasets.Image, datasets.Value, datasets.ClassLabel)
    kept = {name: feature for name, feature in stream.features.items() if isinstance(feature, kinds)}
    encoded = stream.select_columns(list(kept))
    for name, feature in kept.items():
        if isinstance(feature, datasets.Image):
            encoded = encoded.cast_column(name, datasets.Image(decode=False))
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="spinevision-stream-", dir=cache)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path, rows = Path(folder) / "stream.arrow", 0
    schema = datasets.Features(kept).arrow_schema
    try:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in encoded.with_format("arrow").iter(_BATCH):
                writer.write_table(embed_table_storage(batch.select(schema.names).cast(schema)))
                rows += len(batch)
    except Exception as error:  # the network, the disk, or a row that does not fit: the libraries raise anything
        raise DatasetError(
            f"{source} broke off after {counted(rows, 'row')} ({' '.join(str(error).split())}); check the network "
            f"and the disk of {cache}"
        ) from error
    if not rows:
        raise DatasetError(f"{source} is a stream without rows")
    logger.info("%s: %s of a stream kept in %s while this runs", source, counted(rows, "row"), folder)
    return datasets.Dataset.from_file(str(path))
