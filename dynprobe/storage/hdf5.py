"""Opening an HDF5 file without locks, also where the HDF5 library insists on them and the file system has none.

Files of a run are written under a name that nobody else knows and never change afterwards, so locks have nothing to guard. HDF5
is told so; but the environment variable ``HDF5_USE_FILE_LOCKING`` weighs more there, and on a file system without locks the
library then opens nothing.
"""

import errno
from pathlib import Path
from typing import Any, BinaryIO

import h5py

# What a file system without locks says: "No locks available", "not supported" in three ways.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, 524}


class Hdf5File:
    """An open HDF5 file and, where HDF5 itself could not open it, the stream through which it is read and written.

    Parameters
    ----------
    path
        An HDF5 file that is there.
    mode
        ``"r"`` or ``"r+"``.
    options
        As for :class:`h5py.File`.

    Attributes
    ----------
    root
        The file for h5py.

    Raises
    ------
    OSError
        When it is no HDF5 file or cannot be read.
    """

    def __init__(self, path: Path, mode: str, **options: Any) -> None:
        self._stream: BinaryIO | None = None
        try:
            self.root = h5py.File(path, mode, locking=False, rdcc_nbytes=0, **options)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._stream = path.open("rb" if mode == "r" else "r+b", buffering=0)
            try:
                self.root = h5py.File(self._stream, mode, rdcc_nbytes=0, **options)
            except BaseException:
                self._stream.close()
                raise

    def close(self) -> None:
        """Close file and stream."""
        try:
            self.root.close()
        finally:
            if self._stream is not None:
                self._stream.close()
