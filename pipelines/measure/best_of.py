"""Best-of-n: the rows of the images that a reward ranks highest among several draws of the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.config.values import slug
from pipelines.measure.feature_file import FeatureFile
from pipelines.study.arms import StudyArm


def choose(
    arms: Sequence[StudyArm], place: Mapping[str, int], scores: Mapping[str, np.ndarray], features: FeatureFile
) -> None:
    """Fill in the scores and features of each arm that has candidates, from the winner's of each prompt and seed index.

    place: arm name -> index. scores: (arms, prompts, seeds) per name. A score that is not finite never wins against one
    that is.
    """
    for arm in arms:
        if arm.candidates:
            own, among = place[arm.arm.name], np.array([place[one.name] for one in arm.candidates])
            ranked = scores[slug(arm.reward or "")][among]
            winner = among[np.where(np.isfinite(ranked), ranked, -np.inf).argmax(axis=0)]  # (prompts, seeds)
            prompts, seeds = np.ix_(*map(range, winner.shape))
            for values in scores.values():
                values[own] = values[winner, prompts, seeds]
            features.copy(winner, own)
