"""How many actors an evaluation has, and how its progress is told."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipelines import config, pools
from pipelines.bar import Bar
from pipelines.cluster import Cluster
from pipelines.config import ConfigError

GIB = 2**30


def cluster(cpus, gpus=0.0, memory=64 * GIB, present=None):
    return Cluster({"CPU": cpus, "GPU": gpus, "memory": memory}, False, None, present)


def sizes(found, there, memory=0):
    pool = pools.generators(config.load(None, None, found), there, memory)
    return pool.least, pool.start, pool.most


@pytest.mark.parametrize(
    ("keys", "there", "expected"),
    [
        ([], cluster(8), (2, 2, 2)),
        (["evaluate.generators=6"], cluster(4), (3, 3, 3)),  # one scorer of half a CPU, and a task
        (["evaluate.generators=[1, 6]"], cluster(4), (1, 3, 6)),
        (["evaluate.generators=[2, 6]"], cluster(64, present={"CPU": 4}), (2, 3, 6)),
        (["evaluate.generators=[4, 6]"], cluster(64, present={}), (4, 4, 6)),
        (["evaluate.generators=[4, 6]"], cluster(3), (2, 2, 6)),
        (["evaluate.generators=null"], cluster(64, present={"CPU": 9, "memory": 64 * GIB}), (1, 8, float("inf"))),
        (["evaluate.generators=null", "evaluate.generator_gpus=0.5"], cluster(64, 3), (1, 6, float("inf"))),
    ],
)
def test_a_pool_starts_with_what_there_is_room_for_and_ends_where_the_configuration_says(keys, there, expected):
    assert sizes(keys, there) == expected


def test_a_pool_that_takes_what_there_is_holds_memory_too_and_a_fixed_one_does_not():
    there = cluster(64, memory=10 * GIB)
    assert sizes(["evaluate.generators=null"], there, memory=3 * GIB)[1] == 3
    pool = pools.generators(config.load(None, None, ["evaluate.generators=null"]), there, 3 * GIB)
    assert pool.memory == 3 * GIB
    assert sizes(["evaluate.generators=8"], there, memory=3 * GIB) == (8, 8, 8)
    said = r"a generator needs 11 GiB of memory, and the cluster has 10 GiB of memory: lower"
    with pytest.raises(ConfigError, match=said):
        sizes(["evaluate.generators=null"], there, memory=11 * GIB)


def test_a_pool_is_no_larger_than_its_work():
    strategy = pools.Pool(2, 4, float("inf")).strategy(3)
    assert (strategy.min_size, strategy.initial_size, strategy.max_size) == (2, 3, 3)


def test_a_generator_takes_what_a_worker_and_the_models_weights_do():
    layer = nn.Linear(1000, 1000)
    pipe = SimpleNamespace(components={"unet": layer, "again": layer, "scheduler": object()})
    found = pools.host_memory(SimpleNamespace(pipe=pipe, denoiser=layer))  # type: ignore[arg-type]
    assert found == pools.WORKER_BYTES + 4 * (1000 * 1000 + 1000)
    half = layer.to(torch.float16)
    assert pools.host_memory(SimpleNamespace(denoiser=half)) < found  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["[3, 2]", "[1, 2, 3]", "[]"])
def test_bounds_that_are_none_are_refused(value):
    with pytest.raises(ConfigError, match=r"evaluate.generators is .*give a number, or"):
        config.load(None, None, [f"evaluate.generators={value}"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def bar(out, **more):
    now = [0.0]
    made = Bar("images", 200, out=out, clock=lambda: now[0], **more)

    def at(second, *counts, **named):
        now[0] = second
        made.add(*counts, **named)

    return made, at


def test_the_line_tells_images_rates_time_left_and_each_arms_part():
    made, at = bar(io.StringIO(), done=40, arms=5)
    assert made.line() == "images 40/200 (20 %), 5 arms with 8 of 40 images each"
    at(10, 20, 300)
    at(20, 20, 300, failed=1)
    assert made.line() == (
        "images 80/200 (40 %), 2 images/s, 30 predictions/s, 1:00 left, 5 arms with 16 of 40 images each, "
        "1 groups failed"
    )


def test_what_need_not_be_made_counts_as_there_and_not_as_fast():
    made, at = bar(io.StringIO(), unit="arms")
    at(10, 20)
    made.spare(100)
    at(20, 20)
    made.note = "generation 2"
    assert made.line() == "images 140/200 (70 %), 2 arms/s, 0:30 left, generation 2"


def test_a_log_has_whole_lines_now_and_then_and_the_last_state():
    out = io.StringIO()
    made, at = bar(out)
    for second in range(1, 41):
        at(second, 5)
    made.close()
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "images 75/200 (38 %)", "images 150/200 (75 %)", "images 200/200 (100 %)",
    ]  # fmt: skip
    assert "\r" not in out.getvalue() and "left" not in lines[-1]


def test_a_terminal_has_one_line_that_is_drawn_anew():
    out = Terminal()
    made, at = bar(out)
    at(1, 5)
    at(1.1, 5)
    at(2, 5)
    made.close()
    assert out.getvalue().count("\r") == 3 and out.getvalue().count("\n") == 1
