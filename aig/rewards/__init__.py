"""Rewards: `reward(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`; `load` makes one, or a weighted sum."""

from aig.rewards.base import LibraryReward, Reward, report, report_all
from aig.rewards.function import FunctionReward
from aig.rewards.loading import check_trainable, digests, load, needed, reads_prompts
from aig.rewards.spec import NAMES, RewardSpec, parse
from aig.rewards.weighted import WeightedSum
from aig.rewards.world import WorldReward, accuracies
from aig.vision.inputs import InputError

__all__ = [
    "NAMES", "FunctionReward", "InputError", "LibraryReward", "Reward", "RewardSpec", "WeightedSum", "WorldReward",
    "accuracies", "check_trainable", "digests", "load", "needed", "parse", "reads_prompts", "report", "report_all",
]  # fmt: skip
