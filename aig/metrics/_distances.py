"""Squared Euclidean distances of all pairs of two blocks of rows: fast with a bound of the error, or by differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 2**18  # float64 numbers of a temporary array: 2 MiB stay in a cache


class Block(NamedTuple):
    """Rows of a set, and the same around a centre in the dtype of the fastest products, with their squares."""

    rows: Tensor
    """(n, d) float32 or float64, unchanged."""
    centred: Tensor
    """(n, d)"""
    squares: Tensor
    """(n,) ‖centred‖²"""

    def split(self, size: int) -> list[Block]:
        return [Block(*part) for part in zip(*(tensor.split(size) for tensor in self), strict=True)]


def blocks(*sets: Tensor) -> list[Block]:
    """Each set (n, d) around one centre: ‖x‖² + ‖y‖² − 2 x·y cancels at a large common offset."""
    centre = _centre(*sets)
    dtype = torch.float32 if _float32_is_plain(sets[0].device) else torch.float64
    return [_block(rows, centre, dtype) for rows in sets]


def levels(x: Block, y: Block) -> Iterator[tuple[Tensor, float]]:
    """Squared distances (n, m) between rows of x and of y, with a bound of their error, ever more exact.

    Cheapest and roughest first, the last by differences, with error 0: two of these count as different if they differ
    by more than `tie`.
    """
    yield from _product(x, y)
    if x.centred.dtype == torch.float32:
        centre = _centre(x.rows, y.rows)
        yield from _product(*(_block(block.rows, centre, torch.float64) for block in (x, y)))
    yield torch.cdist(x.rows.double(), y.rows.double(), compute_mode="donot_use_mm_for_euclid_dist").square(), 0.0


def differences(x: Block, y: Block, pairs: Tensor) -> Tensor:
    """Squared distances (p,) of the pairs (p, 2) of a row of x and a row of y, by differences in float64."""
    chunks = pairs.split(max(1, CHUNK // x.rows.shape[1]))
    parts = ((x.rows[chunk[:, 0]].double() - y.rows[chunk[:, 1]].double()).square_() for chunk in chunks)
    return torch.cat([part.sum(1) for part in parts])


def tie(d: int) -> float:
    """Relative difference within which two sums of d squares may be equal: each is exact to (d + 2) eps / 2."""
    return (d + 8) * torch.finfo(torch.float64).eps


def _centre(*sets: Tensor) -> Tensor:
    return torch.stack([rows.mean(0, dtype=torch.float64) for rows in sets]).mean(0)


def _block(rows: Tensor, centre: Tensor, dtype: torch.dtype) -> Block:
    centred = torch.cat([(part - centre).to(dtype) for part in rows.split(max(1, CHUNK // rows.shape[1]))])
    return Block(rows, centred, centred.square().sum(1))


def _product(x: Block, y: Block) -> Iterator[tuple[Tensor, float]]:
    """‖x‖² + ‖y‖² − 2 x·y (n, m) and a bound of its error; nothing if squares of huge features overflow.

    Sums of d products in any order are exact to d eps / 2 of their absolute values (Higham 2002, §3.1), and 2 |x·y| <=
    ‖x‖² + ‖y‖²: d eps / 2 of that for the norms and as much for the product, 8 eps for rounding the rows, the sums and
    a caller's limit to this dtype, and then underflow.
    """
    limits, d = torch.finfo(x.centred.dtype), x.centred.shape[1]
    scale = float(x.squares.max()) + float(y.squares.max())
    if scale < limits.max / 4:
        squared = torch.addmm(x.squares[:, None] + y.squares, x.centred, y.centred.T, alpha=-2)
        yield squared, (d + 8) * (limits.eps * scale + 4 * limits.tiny)


def _float32_is_plain(device: torch.device) -> bool:
    """Whether products of float32 stay in float32: settings of the process can make them TF32 or bfloat16."""
    fast = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "ieee")
    return device.type == "cpu" and fast in ("none", "ieee") and torch.get_float32_matmul_precision() == "highest"
