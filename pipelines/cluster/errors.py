"""The first cause of the errors that Ray passes on."""

from __future__ import annotations

import re
from itertools import takewhile


def root_cause(error: BaseException) -> str:
    """The last error that a message names, on one line: Ray's messages hold others before it, tracebacks and all.

    Ray Data names one more after it, which only says that a function failed.
    """
    lines = str(error).strip().splitlines()
    named = [i for i, line in enumerate(lines) if re.match(r"\s*[\w.]+(Error|Exception|Interrupt|Exit)\b.*:", line)]
    first = next((i for i in reversed(named) if "UserCodeException: " not in lines[i]), named[-1] if named else 0)
    cause = takewhile(lambda line: "The above exception was the direct cause" not in line, lines[first:])
    text = " ".join(" ".join(cause).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:250]} ... {text[-250:]}"
