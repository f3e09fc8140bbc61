"""The bootstrap of means over prompts: all arms are resampled together, so common effects of a prompt cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aig.pareto.contrasts import Contrast, contrast
from aig.pareto.fronts import attainment, dominates, finite_or_nan, mean_hypervolume, optimal_mask
from aig.pareto.intervals import METHODS, STUDENTIZED, expanded_percentiles, studentized

Normalization = Sequence[float | None] | np.ndarray | None


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """The result of `bootstrap`. Arms are indices; metrics and families are names. Intervals are at `level`.

    An arm with a value that is not finite has NaN for that metric's mean and interval; if the metric is x or y, it is
    never on the front, dominates nothing and adds no hypervolume. The same holds for a broken arm, which keeps its
    means and intervals.
    """

    x: str
    """The metric on the front's first axis."""
    y: str
    """The metric on its second axis."""
    mean: dict[str, np.ndarray]
    """(arms,) per metric: mean over the prompts."""
    interval: dict[str, np.ndarray]
    """(arms, 2) per metric: low and high of the mean."""
    replicates: dict[str, np.ndarray]
    """(n, arms) per metric: the mean over each replicate's prompts."""
    families: dict[str, tuple[int, ...]]
    """The arms of each family."""
    ends: tuple[int, ...]
    """Arms that do not count in a family's size and are part of each of its sub-families."""
    reference: np.ndarray
    """(2,) in x's and y's units: the origin of hypervolumes."""
    scale: np.ndarray
    """(2,) in x's and y's units: the length that counts as 1 in a hypervolume."""
    broken: tuple[int, ...]
    """Arms with unsound images."""
    by_prompt: dict[str, np.ndarray]
    """(arms, prompts) or (arms, prompts, seeds) per metric: the table, NaN for values that are not finite."""
    counts: np.ndarray
    """(n, prompts): how often each replicate drew each prompt."""
    prompts: int
    method: str
    """The method of intervals of means and their differences: `studentized` or `percentile`."""
    level: float
    seed: int

    @cached_property
    def front(self) -> np.ndarray:
        """(arms,) bool: optimal in (x, y) among all arms at the means."""
        return optimal_mask(self._points(self.mean))

    @cached_property
    def front_probability(self) -> np.ndarray:
        """(arms,) in [0, 1]: the share of replicates in which the arm is optimal."""
        return optimal_mask(self._points(self.replicates)).mean(0)

    def dominates(self, a: int, b: int) -> float:
        """The share of replicates in which arm a dominates arm b in (x, y)."""
        points = self._points(self.replicates)
        return float(dominates(points[:, a], points[:, b]).mean())

    def difference(self, metric: str, a: int, b: int) -> tuple[float, float, float]:
        """Arm a's mean less arm b's on the same prompts: estimate, low, high."""
        mean, replicates = self.mean[metric], self.replicates[metric]
        values = self.by_prompt[metric]
        drawn = replicates[:, [a]] - replicates[:, [b]]
        low, high = _interval(self.method, self.level, values[[a]] - values[[b]], drawn, self.counts)
        return float(mean[a] - mean[b]), float(low[0]), float(high[0])

    def hypervolume(self, *families: str) -> tuple[float, float, float]:
        """Hypervolume of a family's arms in (x, y) after (value − reference) / scale: estimate, low, high.

        For several families, such as one per training seed, their mean. The interval is always of expanded percentiles.
        It only describes: a family of more arms has more by chance alone, so compare families by
        `hypervolume_difference`.
        """
        sizes = [len(self._split(family)[0]) for family in families]
        volumes = [self._volumes(family, size, self.replicates) for family, size in zip(families, sizes, strict=True)]
        means = [self._volumes(family, size, self.mean) for family, size in zip(families, sizes, strict=True)]
        low, high = expanded_percentiles(np.mean(volumes, 0), self.level, self.prompts)
        return float(np.mean(means)), float(low), float(high)

    def hypervolume_difference(self, *pairs: tuple[str, str]) -> Contrast:
        """Hypervolume of family a less that of family b at equal size, for pairs (a, b), one per training seed.

        More arms have more hypervolume by chance alone, since noise helps the best of many. So the larger family's is
        the mean over all its sub-families of the smaller one's size, each with the ends. NaN if a family has no sound
        arm besides the ends.
        """
        volumes = self.volume_differences(*pairs)
        if volumes is None:
            return Contrast(np.nan, np.nan, np.nan, np.nan, (np.nan,) * len(pairs))
        return contrast(*volumes, self.level)

    def volume_differences(self, *pairs: tuple[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What `contrast` takes for `hypervolume_difference`: values (pairs,), (prompts, pairs) without each prompt in
        turn, and replicates (n, pairs); None if a family has no sound arm besides the ends.

        Differences of bootstraps of the same prompts, n and seed may be averaged before: their replicates are paired.
        """
        size = self.compared_size(*pairs)
        if not size:
            return None

        def differences(values: Mapping[str, np.ndarray]) -> np.ndarray:  # (..., pairs)
            return np.stack([self._volumes(a, size, values) - self._volumes(b, size, values) for a, b in pairs], -1)

        return differences(self.mean), differences(self._left_out), differences(self.replicates)

    def compared_size(self, *pairs: tuple[str, str]) -> int:
        """The number of arms besides the ends in `hypervolume_difference`: the smallest family's."""
        return min(self.size(family) for pair in pairs for family in pair)

    def size(self, family: str) -> int:
        """The number of sound arms of a family besides the ends."""
        return len(self._split(family)[0])

    def attainment(self, family: str, share: float = 0.5) -> np.ndarray:
        """Corners (k, 2), in x's and y's units, of the region that a family attains in a share of replicates."""
        return attainment(self._points(self.replicates)[:, self._members(family)], share)

    def _points(self, values: Mapping[str, np.ndarray]) -> np.ndarray:  # (..., arms, 2)
        return _points(values, self.x, self.y, self.broken)

    def _members(self, family: str) -> list[int]:
        if family not in self.families:
            raise ValueError(f"family {family!r} is unknown: bootstrap was given {sorted(self.families)}")
        return list(self.families[family])

    def _split(self, family: str) -> tuple[list[int], list[int]]:
        """A family's sound arms, and its sound ends."""
        points = self._points(self.mean)
        sound = [arm for arm in self._members(family) if np.isfinite(points[arm]).all()]
        return [arm for arm in sound if arm not in self.ends], [arm for arm in sound if arm in self.ends]

    def _volumes(self, family: str, size: int, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mean hypervolume of a family's sub-families of a size, from values (..., arms) of every metric: (...)."""
        inner, ends = self._split(family)
        points = (self._points(values) - self.reference) / self.scale
        return mean_hypervolume(points[..., inner, :], size, points[..., ends, :])

    @cached_property
    def _left_out(self) -> dict[str, np.ndarray]:
        """(prompts, arms) for each axis: the means without each prompt in turn."""
        means = {}
        for metric in {self.x, self.y}:
            values = self.by_prompt[metric].reshape(len(self.mean[metric]), self.prompts, -1).mean(2)
            means[metric] = ((values.sum(1, keepdims=True) - values) / (self.prompts - 1)).T
        return means


def bootstrap(
    table: Mapping[str, np.ndarray],
    n: int = 1000,
    *,
    x: str | None = None,
    y: str | None = None,
    families: Mapping[str, Sequence[int]] | None = None,
    ends: Sequence[int] = (),
    reference: Normalization = None,
    scale: Normalization = None,
    broken: Sequence[int] = (),
    method: str = STUDENTIZED,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Resample prompts n times, the same ones for every arm and metric, and keep each arm's mean of each metric.

    The unit is the prompt: with arms on the same prompts and noise, a prompt's effect on all arms cancels in
    differences. Intervals lie far out in the replicates, so n should be at least 1000. The result depends on seed,
    table and n alone.

    table: metric name -> (arms, prompts), averaged over seeds (or any per-prompt measure), or (arms, prompts, seeds),
    whose seeds are resampled too, within each drawn prompt, the same for every arm. One table may hold both forms. The
    averages already contain the noise of seeds, so the second form has it nearly twice in its replicates (Davison and
    Hinkley 1997, section 3.8): they are conservative. Studentized intervals are those of the averages in both.
    x, y: the two metrics of the front; by default the first two of the table. The front of a single metric is its best
    arm.
    families: name -> indices of its arms, for hypervolumes.
    ends: indices of arms that every family reaches, such as the base: they do not count in a family's size.
    reference, scale: fixed (2,) values in x's and y's units for hypervolumes of (value − reference) / scale; the
    default, also for a None in them, is the least of the sound arms' means, and their range (1 if all tie).
    broken: indices of arms that have intervals and no place on the front.
    method: of intervals of means and their differences, which are NaN below LEAST_PROMPTS prompts. `studentized`
    (bootstrap-t) at 95 % covers the truth in 93 to 97 of 100 samples of 8 prompts or more, even for data as skewed as
    exponential. `percentile` (expanded, Hesterberg 2015) does so for symmetric data, is narrower, and covers 90 % of
    exponential data with 8 prompts; plain percentiles would cover 89 % of normal data there.
    level: in (0, 1).

    Raises ValueError for a table without metrics, different arms or prompts, fewer than two prompts, an unknown axis or
    arm.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=16)  # 16 prompts, common to both arms
        >>> result = aig.pareto.bootstrap({"reward": np.stack([x, x + 1]), "diversity": np.stack([x, x - 1])})
        >>> result.front.tolist(), [round(value, 6) for value in result.difference("reward", 1, 0)]
        ([True, True], [1.0, 1.0, 1.0])
    """
    values = {name: finite_or_nan(array) for name, array in table.items()}
    arms, prompts, seeds = _check_table(values)
    x, y = _check_options(list(values), x, y, n, level, method)
    members = {name: tuple(family) for name, family in (families or {}).items()}
    _check_arms(members, {"broken": broken, "ends": ends}, arms)
    mean = {name: array.reshape(arms, -1).mean(1) for name, array in values.items()}
    replicates, counts = _resample(values, n, prompts, seeds, seed)
    intervals = {name: _interval(method, level, array, replicates[name], counts).T for name, array in values.items()}
    reference, scale = _normalization(_points(mean, x, y, broken), reference, scale)
    return Bootstrap(
        x, y, mean, intervals, replicates, members, tuple(ends), reference, scale, tuple(broken), values, counts,
        prompts, method, level, seed,
    )  # fmt: skip


def _check_options(
    names: list[str], x: str | None, y: str | None, n: int, level: float, method: str
) -> tuple[str, str]:
    """The axes; ValueError for options out of range."""
    x, y = x or names[0], y or names[:2][-1]
    if x not in names or y not in names or (x == y and len(names) > 1):
        raise ValueError(f"x is {x!r} and y {y!r}: give two different metrics out of {names}")
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n is {n} and level {level}: give n >= 1 and a level in (0, 1)")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: give one of {', '.join(METHODS)}")
    return x, y


def _check_arms(families: Mapping[str, Sequence[int]], lists: Mapping[str, Sequence[int]], arms: int) -> None:
    for name, family in families.items():
        if not family or not all(0 <= arm < arms for arm in family):
            raise ValueError(f"family {name!r} is {list(family)}: give at least one arm, each from 0 to {arms - 1}")
    for key, indices in lists.items():
        if not all(0 <= arm < arms for arm in indices):
            raise ValueError(f"{key} is {list(indices)}: give arms from 0 to {arms - 1}")


def _check_table(values: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """Numbers of arms, prompts and seeds; one seed if every metric is averaged."""
    if not values:
        raise ValueError("the table has no metrics: give at least one, and two for a front")
    for name, array in values.items():
        if array.ndim not in (2, 3):
            raise ValueError(f"metric {name!r} has shape {array.shape}: give (arms, prompts) or (arms, prompts, seeds)")
    shapes = {name: array.shape for name, array in values.items()}
    seeds = {shape[2] for shape in shapes.values() if len(shape) == 3} or {1}
    if len({shape[:2] for shape in shapes.values()}) > 1 or len(seeds) > 1:
        raise ValueError(f"metrics have shapes {shapes}: measure all on the same arms, prompts and seeds")
    arms, prompts = next(iter(shapes.values()))[:2]
    if arms < 1 or prompts < 2 or min(seeds) < 1:
        raise ValueError(f"the table has {arms} arms, {prompts} prompts, {min(seeds)} seeds: give at least 1, 2 and 1")
    return arms, prompts, seeds.pop()


def _interval(
    method: str, level: float, values: np.ndarray, replicates: np.ndarray, counts: np.ndarray
) -> np.ndarray:  # (2, k)
    """Intervals of the means of values (k, prompts[, seeds]), with replicates (n, k)."""
    if method != STUDENTIZED:
        return expanded_percentiles(replicates, level, values.shape[1])
    return studentized(values if values.ndim == 2 else values.mean(2), counts, level)


def _resample(
    values: Mapping[str, np.ndarray], n: int, prompts: int, seeds: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each metric's means (n, arms), and how often each prompt was drawn (n, prompts)."""
    rng = np.random.default_rng(seed)
    arms = len(next(iter(values.values())))
    replicates = {name: np.empty((n, arms)) for name in values}
    counts = np.empty((n, prompts), np.min_scalar_type(prompts))
    # Arms that are equal bit for bit (LoRA scale 0 and the base) must tie in every replicate, which a matrix product
    # does not guarantee.
    distinct = {
        name: np.unique(array.reshape(arms, -1), axis=0, return_inverse=True, equal_nan=False)
        for name, array in values.items()
    }
    # Weights of at most 32 MB at a time.
    step = max(1, 2**22 // (prompts * seeds))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        count = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=rows.stop - start)  # (step, prompts)
        counts[rows] = count
        averaged = count / prompts
        nested = averaged
        if any(array.ndim == 3 for array in values.values()):
            nested = rng.multinomial(count * seeds, np.full(seeds, 1 / seeds)) / (prompts * seeds)
            nested = nested.reshape(len(count), -1)  # (step, prompts * seeds)
        for name, (unique, copy) in distinct.items():
            weights = nested if values[name].ndim == 3 else averaged
            replicates[name][rows] = (weights @ unique.T)[:, copy.reshape(-1)]
    return replicates, counts


def _points(values: Mapping[str, np.ndarray], x: str, y: str, broken: Sequence[int]) -> np.ndarray:  # (..., arms, 2)
    points = np.stack([values[x], values[y]], -1)
    points[..., list(broken), :] = np.nan
    return points


def _normalization(points: np.ndarray, reference: Normalization, scale: Normalization) -> tuple[np.ndarray, np.ndarray]:
    sound = points[~np.isnan(points).any(1)]
    if not len(sound):
        sound = np.zeros((1, 2))
    span = np.ptp(sound, axis=0)
    low, unit = _or_default(reference, sound.min(0)), _or_default(scale, np.where(span > 0, span, 1.0))
    if low.shape != (2,) or not np.isfinite(low).all():
        raise ValueError(f"reference is {reference}: give two finite values, for x and y")
    if unit.shape != (2,) or not (np.isfinite(unit) & (unit > 0)).all():
        raise ValueError(f"scale is {scale}: give two positive values, for x and y")
    return low, unit


def _or_default(values: Normalization, default: np.ndarray) -> np.ndarray:
    if values is None or len(values) != len(default):
        return default if values is None else np.array(values, np.float64)
    return np.array([d if v is None else v for v, d in zip(values, default, strict=True)], np.float64)
