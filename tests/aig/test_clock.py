"""The step of every scheduler, seen in diffusers' own pipelines."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DDIMScheduler, EulerDiscreteScheduler
from tuned_pipes import denoiser, latents, picture, tuned

import aig
from aig import schedules
from aig.clock import Clock, steps

T = 6
ONCE = [0, 1, 2, 3, 4, 5]
TWICE = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]  # the last step has no noise left to correct
REDONE = [0, 0, 1, 2, 3, 4, 5]
RUNGE_KUTTA = [0] * 4 + [1] * 4 + [2] * 4 + [3, 4, 5]
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {}, ONCE),
    "DDPM": ("DDPMScheduler", {}, ONCE),
    "Euler": ("EulerDiscreteScheduler", {}, ONCE),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, ONCE),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}, ONCE),
    "DPM-Solver++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ONCE),
    "DPM-Solver singlestep": ("DPMSolverSinglestepScheduler", {}, ONCE),
    "UniPC": ("UniPCMultistepScheduler", {}, ONCE),
    "DEIS": ("DEISMultistepScheduler", {}, ONCE),
    "SA-Solver": ("SASolverScheduler", {}, ONCE),
    "LMS": ("LMSDiscreteScheduler", {}, ONCE),
    "LCM": ("LCMScheduler", {}, ONCE),
    "TCD": ("TCDScheduler", {}, ONCE),
    "Heun": ("HeunDiscreteScheduler", {}, TWICE),
    "Heun Karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, TWICE),
    "KDPM2": ("KDPM2DiscreteScheduler", {}, TWICE),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}, TWICE),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, REDONE),
    "PNDM Runge-Kutta": ("PNDMScheduler", {"skip_prk_steps": False}, RUNGE_KUTTA),
}
FLOW = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", ONCE),
    "Heun": ("FlowMatchHeunDiscreteScheduler", TWICE),
}
every = pytest.mark.parametrize("name", SCHEDULERS)


@pytest.fixture(scope="module")
def sd():
    return tuned("sd", "a")


@pytest.fixture(scope="module")
def sd3():
    return tuned("sd3", "a")


def set_scheduler(pipe, cls, changes):
    pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **changes)


def seen(pipe, schedule: str, run=latents, **kwargs) -> list[float]:
    """The weight at each call of the denoiser, in a run of the pipeline."""
    clock, levels = denoiser(aig.annealed(pipe, schedule)).clock, []
    weight = clock.weight
    clock.weight = lambda *args: levels.append(weight(*args)) or levels[-1]
    run(pipe, steps=T, **kwargs)
    return levels


def expected(schedule: str, of: list[int]) -> list[float]:
    """The schedule's own list over T steps, at these steps."""
    per_step = schedules.weights(schedules.parse(schedule), range(T), 1.0)
    return [per_step[i] for i in of]


@every
def test_every_scheduler_sees_the_schedules_weight_at_its_step(sd, name):
    cls, changes, of = SCHEDULERS[name]
    set_scheduler(sd, cls, changes)
    assert seen(sd, "power:2") == expected("power:2", of)


@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_schedulers_see_the_schedules_weight_at_their_step(sd3, name):
    cls, of = FLOW[name]
    set_scheduler(sd3, cls, {})
    assert seen(sd3, "power:2") == expected("power:2", of)


@pytest.mark.parametrize("cls", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_a_new_step_begins_where_a_second_order_scheduler_says_so(sd, cls):
    set_scheduler(sd, cls, {})
    first_order = []
    hook = denoiser(aig.annealed(sd, None)).register_forward_pre_hook(
        lambda *_: first_order.append(sd.scheduler.state_in_first_order)
    )
    latents(sd, T)
    hook.remove()
    assert [sum(first_order[: n + 1]) - 1 for n in range(len(first_order))] == steps(sd.scheduler)


# diffusers begins the Runge-Kutta warm-up anew at the late time.
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "PNDM Runge-Kutta"])
def test_a_run_that_starts_late_sees_the_late_weights(sd, name):
    cls, changes, of = SCHEDULERS[name]
    set_scheduler(sd, cls, changes)
    image_to_image = AutoPipelineForImage2Image.from_pipe(sd)
    image_to_image.set_progress_bar_config(disable=True)
    late = of[6:] if of is TWICE else of[3:]
    assert seen(image_to_image, "power:2", image=picture(), strength=0.5) == expected("power:2", late)


def test_pndm_that_starts_at_its_second_time_does_not_go_back(sd):
    set_scheduler(sd, "PNDMScheduler", {"skip_prk_steps": True})
    image_to_image = AutoPipelineForImage2Image.from_pipe(sd)
    image_to_image.set_progress_bar_config(disable=True)
    levels = seen(image_to_image, "linear", image=picture(), strength=5 / 6 + 0.01)
    assert levels == expected("linear", [1, 1, 2, 3, 4, 5])


def test_rounded_times_that_coincide_are_told_apart_by_the_schedulers_index(sd):
    set_scheduler(sd, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
    aig.annealed(sd, None)
    sd.scheduler.set_timesteps(50)
    times = sd.scheduler.timesteps.tolist()
    assert len(set(times)) < len(times)
    clock, schedule = Clock(sd), schedules.parse("linear")
    x = torch.zeros(1, 4, 2, 2)
    levels = []
    for t in sd.scheduler.timesteps:
        levels.append(clock.weight(schedule, t))
        x = sd.scheduler.step(x, t, x).prev_sample
    assert levels == [i / 50 for i in range(50)]


@pytest.mark.parametrize("name", ["DDIM", "Heun", "Heun Karras", "KDPM2", "PNDM"])
def test_a_schedule_over_time_reads_each_calls_own_time(sd, name):
    cls, changes, _ = SCHEDULERS[name]
    set_scheduler(sd, cls, changes)
    levels = seen(sd, "linear@time")
    assert levels == pytest.approx([max(1 - t / 1000, 0) for t in sd.scheduler.timesteps.tolist()])


def test_a_schedule_over_time_reads_the_flows_time(sd3):
    set_scheduler(sd3, "FlowMatchEulerDiscreteScheduler", {})
    assert seen(sd3, "linear@time") == pytest.approx([1 - t / 1000 for t in sd3.scheduler.timesteps.tolist()])


def test_flux_which_divides_the_time_by_a_thousand_is_followed():
    assert seen(tuned("flux", "a"), "power:2") == expected("power:2", ONCE)


def test_a_scheduler_that_is_replaced_is_followed(sd):
    set_scheduler(sd, "DDIMScheduler", {})
    aig.annealed(sd, "linear")
    weight = sd.unet.clock.weight
    levels = []
    sd.unet.clock.weight = lambda *args: levels.append(weight(*args)) or levels[-1]
    for cls in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        set_scheduler(sd, cls, {})
        latents(sd, T)
    assert levels == expected("linear", ONCE + TWICE)


@pytest.mark.parametrize("late", ["finished", "never begun", "elsewhere"])
def test_a_scheduler_that_is_not_the_runs_own_is_refused(sd, late):
    set_scheduler(sd, "EulerDiscreteScheduler", {})
    aig.annealed(sd, None)
    other = EulerDiscreteScheduler.from_config(sd.scheduler.config)
    if late != "never begun":
        other.set_timesteps(T)
    if late == "finished":
        other._step_index = T
    if late == "elsewhere":
        other._step_index = 2
    sd.unet = aig.AnnealedDenoiser(sd.unet, "linear", None, scheduler=other)
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler.*another scheduler; call aig\.annealed"):
        latents(sd, T)
    aig.annealed(sd, None)


def test_a_time_off_the_grid_is_refused():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="time 777"):
        Clock(scheduler).weight(schedules.parse("linear"), 777)


@pytest.mark.parametrize("source", [None, "DDIM"])
def test_what_is_neither_pipeline_nor_scheduler_is_refused(source):
    with pytest.raises(ValueError, match="scheduler=pipe"):
        Clock(source)
