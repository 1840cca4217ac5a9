"""A Parquet file, opened so that nothing large is made of it before its own account of its sizes was checked.

A column is read a few rows at a time: a dictionary, or a run of repeated values, may stand for far more bytes than the
file has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pruning_core.calibration.parquet_footer import RowGroup, parse
from pruning_core.errors import DatasetError

MAX_ROWS = 10_000_000
MAX_COLUMNS = 256
MAX_ROW_GROUPS = 100_000
MAX_FOOTER_BYTES = 8 * 2**20
#: Numbers of one column in one row group.
MAX_VALUES = 2**31
#: Of one column in one row group, as the file says.
MAX_CHUNK_BYTES = 2 * 2**30
#: What is made of the file at a time. A dictionary's value may come in every row of a batch.
BATCH_BYTES = 128 * 2**20
_BATCH_ROWS = 1024
_ADVICE = (
    "Write it with datasets.Dataset.to_parquet (a column 'image' of {bytes, path}, and 'label'), or with columns of "
    "numbers and lists of numbers named like the network's inputs."
)


@contextmanager
def told() -> Iterator[None]:
    """Turn what the library says of a broken file into a problem."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DatasetError(
            "Parquet cannot be read here: pyarrow is not installed.",
            advice="Install it: pip install 'pruning-service[data]'.",
        ) from error
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError, IndexError) as error:
        raise refused(f"The file cannot be read: {str(error)[:300]}", "a complete Parquet file") from error


def refused(detail: str, expected: object, received: object = None) -> DatasetError:
    """Return the error for a file that cannot be used."""
    return DatasetError(detail, expected=expected, received=received, advice=_ADVICE)


def footer(path: Path) -> list[RowGroup]:
    """Return what the file says of its row groups.

    Raises:
        DatasetError: The footer is missing, huge or unsound, or a size in it is beyond what is read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        end = file.read()
        length = int.from_bytes(end[:4], "little")
        if size < 12 or end[4:] != b"PAR1" or not 0 < length <= min(size - 12, MAX_FOOTER_BYTES):
            raise refused("The file has no sound end: it is truncated, or not Parquet.", "a complete Parquet file")
        file.seek(size - 8 - length)
        rows, groups = parse(file.read(length))
    for what, count, most in (("rows", rows, MAX_ROWS), ("row groups", len(groups), MAX_ROW_GROUPS)):
        if not 0 < count <= most:
            raise refused(f"The file has {count} {what}.", f"1 to {most}", count)
    if any(group.rows < 0 for group in groups) or sum(group.rows for group in groups) != rows:
        raise refused("The row groups do not add up to the rows.", rows)
    for group in groups:
        if not 0 < len(group.chunks) <= MAX_COLUMNS:
            raise refused(f"The file has {len(group.chunks)} columns.", f"1 to {MAX_COLUMNS}", len(group.chunks))
        for name, chunk in group.chunks.items():
            if not (0 <= chunk.size <= MAX_CHUNK_BYTES and 0 <= chunk.values <= MAX_VALUES):
                raise refused(
                    f"Column {name[:80]!r} has {chunk.values} values of {chunk.size} bytes in one row group.",
                    f"at most {MAX_CHUNK_BYTES} bytes: write smaller row groups",
                )
    return groups


def opened(path: Path) -> Any:
    """Return a `pyarrow.parquet.ParquetFile` that reads pages as they are needed, on this thread."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # gives memory back, and asks for no more than it uses
    return pq.ParquetFile(
        path,
        memory_map=False,
        buffer_size=1 << 20,
        pre_buffer=False,
        thrift_string_size_limit=MAX_FOOTER_BYTES,
        thrift_container_size_limit=1_000_000,
        arrow_extensions_enabled=False,
    )


def batches(
    file: Any, groups: Sequence[RowGroup], column: str, wanted: Callable[[range], bool] = lambda rows: len(rows) > 0
) -> Iterator[tuple[int, Any]]:
    """Yield the first row's number and the array of each batch of a column.

    Args:
        file: As `opened` returns it.
        groups: The same file's `footer`.
        column: Its path; of a column of lists its name.
        wanted: Whether a row group of these rows is read.

    Raises:
        DatasetError: The column is not in every row group, or has other rows than the file says.
    """
    first = 0
    for number, group in enumerate(groups):
        rows = range(first, first + group.rows)
        first = rows.stop
        if len(rows) == 0 or not wanted(rows):
            continue
        mine = [chunk for path, chunk in group.chunks.items() if path == column or path.startswith(f"{column}.")]
        if len(mine) != 1:
            raise refused(f"Column {column!r} is not in every row group.", "the same columns in every row group")
        size = min(_BATCH_ROWS, max(1, BATCH_BYTES // max(1, mine[0].size)))
        start = rows.start
        for batch in file.iter_batches(size, row_groups=[number], columns=[column], use_threads=False):
            array = batch.column(0)
            yield start, array
            start += len(array)
        if start != rows.stop:
            raise refused(f"Column {column!r} has another number of rows than the file says.", rows.stop, start)


def flat(array: Any, name: str) -> np.ndarray[Any, Any]:
    """Return the numbers of an array without nulls.

    Raises:
        DatasetError: It has nulls, or holds something else.
    """
    no_nulls(array, name)
    values: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise refused(f"Column {name!r} is {array.type}.", "numbers", str(array.type))
    return values


def no_nulls(array: Any, name: str) -> None:
    """Refuse an array with nulls.

    Raises:
        DatasetError: It has some.
    """
    if array.null_count:
        raise refused(f"Column {name!r} has rows without a value.", "a value in every row")
