"""As much of the package wandb as Ray's integration and ours call, recorded."""

from recording import record

from wandb.sdk.data_types.image import Image as Image
from wandb.wandb_run import Run

util = None


def ensure_configured():
    pass


class api:  # noqa: N801
    api_key = "none is needed"


def init(**settings):
    record("init", **settings)
    return Run()
