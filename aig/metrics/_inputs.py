"""The checks of every measure's inputs, in one place and in the same words."""

from collections.abc import Sequence

import numpy as np
import torch

Features = np.ndarray | torch.Tensor
Groups = Sequence | np.ndarray | torch.Tensor


class FeatureError(ValueError):
    """The error of features that a measure cannot take: too few, not finite, constant, or without a direction.

    Examples:
        >>> try:
        ...     aig.metrics.vendi_score(np.zeros((1, 4)))
        ... except aig.metrics.FeatureError as error:
        ...     print(error)
        x has 1 rows, fewer than the 2 needed: generate more images
    """


NUMBERS = 2**20  # per float64 copy of streamed rows: 8 MiB


def streamed(x: Features) -> int:
    """The number of rows of x (n, d) to copy to float64 at a time."""
    return max(1, NUMBERS // max(1, int(np.prod(x.shape[1:]))))


def as_features(
    x: Features, name: str, min_rows: int = 2, first_row: int = 0, keep_float32: bool = False
) -> torch.Tensor:
    """Features as a float64 tensor (n, d) on their own device; a ValueError names the reason and the fix.

    first_row is the index of x's first row in the caller's set, for messages; keep_float32 does not copy float32 rows.
    """
    if isinstance(x, torch.Tensor):
        # MPS has no float64.
        dtype = torch.float32 if keep_float32 and x.dtype == torch.float32 else torch.float64
        x = x.detach().to("cpu" if x.device.type == "mps" else x.device, dtype)
    else:
        x = np.asarray(x)
        x = np.asarray(x, np.float32 if keep_float32 and x.dtype == np.float32 else np.float64)
        # torch warns of read-only arrays, as Arrow's are, and refuses reversed ones.
        x = torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: give features as (n, d), one row per image")
    if x.shape[0] < min_rows:
        raise FeatureError(f"{name} has {x.shape[0]} rows, fewer than the {min_rows} needed: generate more images")
    finite = torch.cat([torch.isfinite(rows).all(1) for rows in x.split(streamed(x))])
    if not finite.all():
        bad = torch.nonzero(~finite)[:, 0]
        raise FeatureError(
            f"{name} holds values that are not finite in {len(bad)} of {len(x)} rows, "
            f"first in row {first_row + int(bad[0])}: drop these images, or mark their arm as broken"
        )
    return x


def as_feature_pair(
    ref: Features, gen: Features, min_rows: int = 2, keep_float32: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`as_features` of both, on the reference's device, with equal d, neither constant."""
    r = as_features(ref, "ref", min_rows, keep_float32=keep_float32)
    g = as_features(gen, "gen", min_rows, keep_float32=keep_float32).to(r.device)
    check_dimensions(r.shape[1], g.shape[1])
    for name, x in (("ref", r), ("gen", g)):
        check_varied(bool((x != x[0]).any()), name, len(x))
    return r, g


def check_varied(varied: bool, name: str, n: int) -> None:
    if not varied:
        raise FeatureError(
            f"{name} is constant, its {n} rows are all alike, so a distance or a share of it means nothing: mark its "
            "arm as broken, or check the feature extractor"
        )


def check_equal_n(n_ref: int, n_gen: int, reason: str) -> None:
    if n_ref != n_gen:
        raise ValueError(
            f"ref has n = {n_ref} and gen n = {n_gen}: {reason}, so unequal n alone makes a difference; use equally "
            "many rows, or pass allow_unequal_n=True"
        )


def check_dimensions(d_a: int, d_b: int, a: str = "ref", b: str = "gen") -> None:
    if d_a != d_b:
        raise ValueError(f"{a} has d = {d_a} and {b} d = {d_b}: take both from the same feature extractor")


def unit_rows(x: Features, name: str, min_rows: int = 2, first_row: int = 0) -> torch.Tensor:
    """`as_features` scaled to unit length, for cosine measures."""
    x = as_features(x, name, min_rows, first_row)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # (n, 1)
    if (length == 0).any():
        row = first_row + int(torch.nonzero(length[:, 0] == 0)[0, 0])
        raise FeatureError(
            f"{name} has a row of zeros (row {row}), which has no direction: drop it, or use a Euclidean measure"
        )
    return x / length


def group_index(groups: Groups, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct groups (g,) and each row's index among them (n,)."""
    labels = as_labels(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups has shape {labels.shape} for {n} rows: give one prompt id per row")
    return np.unique(labels, return_inverse=True)


def as_labels(groups: Groups) -> np.ndarray:
    return groups.cpu().numpy() if isinstance(groups, torch.Tensor) else np.asarray(groups)
