"""What a stand-in was called with, a JSON line a call, in the file that STAND_IN_CALLS names."""

import json
import os


def record(call, **what):
    with open(os.environ["STAND_IN_CALLS"], "a") as file:
        file.write(json.dumps({"call": call, **what}) + "\n")
