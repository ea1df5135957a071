"""TinyStories from the Hugging Face hub, by the `datasets` library, as local Parquet files.

The rows are streamed into files of the same schema (a column `text`), one for each split, so that everything else reads
local files. Reference: https://huggingface.co/datasets/roneneldan/TinyStories; Eldan & Li (arXiv 2305.07759).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from quill.data.download import require_answer
from quill.data.reading.formats import OnProgress
from quill.data.reading.records import TEXT_COLUMN
from quill.errors import CorpusError, first_line
from quill.files import draft_of

REPOSITORY = "roneneldan/TinyStories"
"""A repository of the hub, or a local folder of files that `datasets` can load."""

_ROWS = 10_000  # in a group of a Parquet file


def fetch_tinystories(folder: Path, seconds: float, on_progress: OnProgress) -> None:
    """Write a folder of one Parquet file for each split of TinyStories; it is there whole or not at all.

    CorpusError with the reason if the library is missing, or the hub does not begin to answer within `seconds`.
    """
    if importlib.util.find_spec("datasets") is None or importlib.util.find_spec("pyarrow") is None:
        raise CorpusError("the datasets library is not installed: pip install 'quill-gpt[datasets]'")
    if not Path(REPOSITORY).is_dir() and os.environ.get("HF_HUB_OFFLINE", "0") == "0":
        require_answer(f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/datasets/{REPOSITORY}", seconds)
    draft = draft_of(folder)
    try:
        draft.mkdir(parents=True)
        _write_splits(draft, on_progress)
        os.replace(draft, folder)
    except Exception as error:  # the library raises errors of many kinds
        raise CorpusError(f"the datasets library: {first_line(error, 80)}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_splits(folder: Path, on_progress: OnProgress) -> None:
    import datasets  # pyright: ignore[reportMissingImports]
    import pyarrow
    import pyarrow.parquet

    pa: Any = pyarrow
    splits: Any = datasets.load_dataset(REPOSITORY, streaming=True)
    schema = pa.schema([(TEXT_COLUMN, pa.string())])
    for name, rows in splits.items():
        known = rows.info.splits or {}
        total = known[name].num_examples if name in known else 0
        done = 0
        with pa.parquet.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            for batch in rows.select_columns([TEXT_COLUMN]).iter(batch_size=_ROWS):
                writer.write_table(pa.table({TEXT_COLUMN: batch[TEXT_COLUMN]}, schema=schema))
                done += len(batch[TEXT_COLUMN])
                on_progress(f"downloading TinyStories, {name}: {done:,} stories", min(1.0, done / (total or done)))
