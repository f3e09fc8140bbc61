"""`python full_disk.py FOLDER ARGUMENTS`: evaluate into a file system that is too small, and again after it has grown.

Mounts the file system on FOLDER, so it has to run in a mount namespace of its own. Prints, as JSON, the exit codes,
what was said, and what was left where there was no space.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import ray

from pipelines.__main__ import main

SMALL, LARGE = "200k", "64m"


def mount(folder, size, *more):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *more]), "tmpfs", folder], check=True)


def evaluate(given):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["evaluate", *given])
    return code, said.getvalue()


def run(folder, given):
    mount(folder, SMALL)
    ray.init(address="local", num_cpus=4, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    code, said = evaluate(given)
    left = sorted(path.name for path in Path(folder).rglob("*") if path.is_file())
    mount(folder, LARGE, "remount")
    again = evaluate(given)
    found = {path.name: path.read_bytes().hex() for path in Path(folder).glob("*/images/*")}
    ray.shutdown()
    return {"codes": [code, again[0]], "said": said, "left": left, "found": found}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2:])))
