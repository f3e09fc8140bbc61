"""An evaluation on a full disk says so, leaves nothing that is half written, and is completed once there is space."""

import json
import os
import subprocess
import sys

import pytest
from evaluations import arguments, by_hand, save_lora
from pipeline_toys import HERE

from pipelines import config as configuration

pytestmark = pytest.mark.kills

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount():
    try:
        done = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
        return done.returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="no mount namespaces for users here")
@pytest.mark.timeout(280)
def test_a_full_disk_ends_an_evaluation_with_a_clear_error_and_the_same_command_completes_it(tmp_path):
    inputs = tmp_path / "untrained", save_lora(tmp_path / "untrained", tmp_path / "mine.safetensors")
    more = {"evaluate__rewards": "['pipeline_toys:bright']", "evaluate__path_prompts": 0, "evaluate__prompts": 6}
    whole = by_hand(configuration.load("smoke", None, arguments(*inputs, tmp_path / "whole", **more)[2:]))
    small = tmp_path / "small"
    small.mkdir()
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"}
    script = subprocess.run(
        [*NAMESPACE, sys.executable, HERE / "full_disk.py", small, *arguments(*inputs, small, **more)],
        cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert script.returncode == 0, script.stderr[-3000:]
    seen = json.loads(script.stdout.splitlines()[-1])
    assert seen["codes"] == [1, 0]
    told = [line for line in seen["said"].splitlines() if line.startswith("failed: OSError: No space left on device")]
    assert len(told) == 1 and f"in {small}/smoke/images: make room there, and run the same command again" in told[0]
    assert not [name for name in seen["left"] if name.endswith(".part")]
    units = [name for name in seen["left"] if name.startswith("part-")]
    assert 0 < len(units) < len(whole), "the disk was never half full"
    assert {name: bytes.fromhex(content) for name, content in seen["found"].items()} == whole
