"""The commands by name, as `--help` lists them."""

from pipelines.commands import (
    check,
    compare,
    demo,
    evaluate,
    front,
    map,
    measure,
    report,
    score,
    search,
    status,
    sweep,
    train,
)

COMMANDS = {
    "check": check.COMMAND,
    "train": train.COMMAND,
    "sweep": sweep.COMMAND,
    "evaluate": evaluate.COMMAND,
    "measure": measure.COMMAND,
    "compare": compare.COMMAND,
    "front": front.COMMAND,
    "map": map.COMMAND,
    "report": report.COMMAND,
    "search": search.COMMAND,
    "demo": demo.COMMAND,
    "score": score.COMMAND,
    "status": status.COMMAND,
}
