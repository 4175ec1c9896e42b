"""Parquet files; the only user of pyarrow, which is optional."""

import io
from typing import Any

from dynprobe.errors import TaskDataError


def read_parquet(data: bytes, where: str) -> dict[str, list[Any]]:
    """Columns of a Parquet file as Python values.

    Raises
    ------
    TaskDataError
        When pyarrow is not installed, or cannot read the file.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise TaskDataError(
            f"`{where}` needs pyarrow to be read; install it with `pip install dynprobe[parquet]`"
        ) from error
    try:
        return pq.read_table(io.BytesIO(data)).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TaskDataError(f"`{where}` must be a Parquet file; pyarrow says: {error}") from error
