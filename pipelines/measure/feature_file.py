"""All features of a run in one file of float32, so that those of a million images need not be in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMN = "features"


@dataclass(frozen=True)
class FeatureFile:
    """A file of shape (arms, prompts, seeds, d) on this machine, by its path."""

    path: Path

    def arm(self, arm: int) -> np.ndarray:
        """An arm's features (prompts, seeds, d), memory-mapped and read-only."""
        return np.asarray(np.load(self.path, mmap_mode="r")[arm])

    def rows(self, arm: int, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an arm's features (stop − start, d), by prompt and then by seed."""
        whole = np.load(self.path, mmap_mode="r")[arm]
        return np.array(whole.reshape(-1, whole.shape[-1])[start:stop])

    def copy(self, source: np.ndarray, arm: int) -> None:
        """Give an arm, in each prompt and seed, the features of the arm source[prompt, seed]."""
        whole = np.load(self.path, mmap_mode="r+")
        for prompt, row in enumerate(source):
            whole[arm, prompt] = whole[row, prompt, np.arange(len(row))]


@contextmanager
def gathered(
    path: Path,
    units: Sequence[Path],
    shape: tuple[int, int, int],
    place: Mapping[str, int],
    row: np.ndarray | None = None,
) -> Iterator[FeatureFile]:
    """The units' features by arm, prompt and seed, for the length of the context; one unit at a time is in memory.

    path: of the file, 4 bytes per number. shape: arms, prompts and seeds. place: arm name -> index. row: prompt number
    -> index, if those differ.
    """
    try:
        for i, unit in enumerate(units):
            table = pq.read_table(unit, columns=["arm", "prompt_id", "seed_index", COLUMN])
            rows = _matrix(table)
            if i == 0:
                np.lib.format.open_memmap(path, "w+", np.float32, (*shape, rows.shape[1]))
            arms = np.array([place[name] for name in table["arm"].to_pylist()])
            prompts = table["prompt_id"].to_numpy()
            prompts = prompts if row is None else row[prompts]
            # Mapped anew for each unit, so that written pages do not stay in this process.
            np.load(path, mmap_mode="r+")[arms, prompts, table["seed_index"].to_numpy()] = rows
        yield FeatureFile(path)
    finally:
        path.unlink(missing_ok=True)


def _matrix(table: pa.Table) -> np.ndarray:  # (n, d)
    column = table[COLUMN].combine_chunks()
    flat = column.values if isinstance(column, pa.FixedSizeListArray) else column.flatten()
    return np.asarray(flat).reshape(len(table), -1)
