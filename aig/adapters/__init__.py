"""LoRA adapters and full copies of the denoiser: attach, save, load, scale, and route each row of a batch.

The base model is the denoiser without an adapter, so one set of weights (with `full`, one denoiser with two sets)
serves both predictions of annealed importance guidance in one forward.
"""

from aig.adapters.base import OtherBase
from aig.adapters.files import FULL_WEIGHTS, RECORD, WEIGHTS, digest, load, read_record, save, weights_file
from aig.adapters.full import full
from aig.adapters.lora import TARGETS, attach, parameters, scaled
from aig.adapters.routing import BASE, Fuser, fusing, is_copy, key, names, routed
from aig.adapters.soup import soup

__all__ = [
    "BASE", "FULL_WEIGHTS", "RECORD", "TARGETS", "WEIGHTS", "Fuser", "OtherBase", "attach", "digest", "full", "fusing",
    "is_copy", "key", "load", "names", "parameters", "read_record", "routed", "save", "scaled", "soup",
    "weights_file",
]  # fmt: skip
