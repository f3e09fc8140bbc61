"""Measure a DRaFT step against TRL's AlignPropTrainer: processor time and peak memory, in one process each.

    python -m benchmarks.trl                        # installs trl 0.23.1 from the package index into a temporary folder
    python -m benchmarks.trl --trl FOLDER           # uses one that `pip install --no-deps --target FOLDER` made

One Stable Diffusion pipeline of random weights, built here, one LoRA, one reward, DDIM without noise, float32, one
thread. The two take turns, each time in a new process; figures are medians over rounds. `per sample` divides by the
gradient samples of a step: DRaFT-LV draws several an image.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

TRL = "trl==0.23.1"
STEPS, BATCH, GUIDANCE, RANK, RATE, CLIP = 10, 2, 3.0, 4, 1e-4, 1.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # and rank 4, alpha 4: what TRL's own pipeline attaches
PROMPTS = ("a red star", "a blue cat")
# What is asked of each case: its ratio to TRL's time, and whether memory may not be higher.
BARS = {"K = 1": (0.88, True), "all steps": (0.8, False), "LV 2, per sample": (0.7, True)}
OURS = {
    "K = 1": {"k": 1, "micro_batch": BATCH},
    "all steps": {"k": STEPS, "micro_batch": BATCH},
    "LV 2, per sample": {"lv": 2, "micro_batch": 1},
}
SAMPLES = {"LV 2, per sample": 2}
# TRL's counterpart: gradient from this step on; it has no DRaFT-LV, so the last step again.
TRUNCATED = {"K = 1": STEPS - 1, "all steps": 0, "LV 2, per sample": STEPS - 1}


def reward(images: torch.Tensor, prompts: object, metadata: object = None) -> torch.Tensor:
    """A smooth function (B,) of images in [0, 1]."""
    return torch.sin(3 * images).mean(dim=(1, 2, 3))


def build(folder: Path) -> None:
    """A Stable Diffusion pipeline of 64 and 128 channels on 32x32 latents: the smallest whose time is computation."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            latent_channels=4, block_out_channels=(16, 32), norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=32, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=64,
            attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def ours(folder: str, case: str) -> Callable[[], object]:
    from aig import adapters, draft
    from aig.models import Sampling, load

    model = load(folder)
    adapters.attach(model.denoiser, "a", RANK, RANK, TARGETS)
    parameters = adapters.parameters(model.denoiser, "a")
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    config = draft.DraftConfig(Sampling(STEPS, GUIDANCE, passes=2, fuse=True, block=1), **OURS[case])

    def step() -> None:
        optimizer.zero_grad()
        draft.train_step(model, reward, "a", list(PROMPTS), [0, 1], config)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    return step


def theirs(folder: str, case: str) -> Callable[[], object]:
    from accelerate import PartialState

    PartialState(cpu=True)  # before TRL asks for a device
    from trl.models import DefaultDDPOStableDiffusionPipeline  # pyright: ignore[reportMissingImports]
    from trl.trainer.alignprop_config import AlignPropConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.alignprop_trainer import AlignPropTrainer  # pyright: ignore[reportMissingImports]

    config = AlignPropConfig(
        mixed_precision="no", sample_num_steps=STEPS, sample_eta=0.0, sample_guidance_scale=GUIDANCE,
        train_batch_size=BATCH, train_gradient_accumulation_steps=1, train_learning_rate=RATE,
        train_max_grad_norm=CLIP, truncated_backprop_rand=False, truncated_backprop_timestep=TRUNCATED[case],
        log_with=None, save_freq=10**6, log_image_freq=10**6,
        accelerator_kwargs={"cpu": True}, project_kwargs={"project_dir": tempfile.gettempdir()},
    )  # fmt: skip
    waiting: list[str] = []

    def prompt() -> tuple[str, dict]:
        waiting.extend([] if waiting else PROMPTS)
        return waiting.pop(0), {}

    pipeline = DefaultDDPOStableDiffusionPipeline(folder)
    trainer = AlignPropTrainer(config, reward, prompt, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: trainer.step(0, 0)


def child(which: str, folder: str, case: str, steps: int) -> None:
    """Run one contender in this process and print its figures."""
    torch.set_num_threads(1)
    step = {"ours": ours, "trl": theirs}[which](folder, case)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: what loading took does not matter
    step()  # warms up
    seconds = []
    for _ in range(steps):
        begun = time.process_time()
        step()
        seconds.append(time.process_time() - begun)
    print(json.dumps({"seconds": seconds, "resident": memory("VmHWM"), "added": memory("VmHWM") - before}))


def memory(field: str) -> float:
    """A figure of /proc/self/status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def run(which: str, folder: str, case: str, steps: int, trl: str) -> dict:
    """One contender in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    if which == "trl":  # behind everything else, so that only TRL itself comes from there
        environment["TRL_FOLDER"] = trl
    command = [sys.executable, "-m", "benchmarks.trl", "--child", which, folder, case, str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{which}, {case}: failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: str, case: str, rounds: int, steps: int, trl: str) -> dict:
    """Both contenders in turns; medians over rounds."""
    found: dict[str, list[dict]] = {"ours": [], "trl": []}
    for i in range(rounds):
        for which in ("ours", "trl") if i % 2 == 0 else ("trl", "ours"):
            found[which].append(run(which, folder, case, steps, trl))
    shares = {"ours": SAMPLES.get(case, 1), "trl": 1}
    result: dict = {"bar": BARS[case][0]}
    for which, runs in found.items():
        times = [statistics.median(each["seconds"]) / shares[which] for each in runs]
        peaks = {field: statistics.median(each[field] for each in runs) for field in ("resident", "added")}
        result[which] = {"seconds": statistics.median(times), "rounds": times, **peaks}
    pairs = zip(result["ours"]["rounds"], result["trl"]["rounds"], strict=True)
    result["ratio"] = statistics.median(mine / other for mine, other in pairs)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"which of {', '.join(map(repr, BARS))} (default: all)"
    )
    parser.add_argument("--trl", help="a folder that holds trl (default: a temporary one, filled from the index)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes a case (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a process (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        sys.path.extend([os.environ["TRL_FOLDER"]] if "TRL_FOLDER" in os.environ else [])
        which, folder, case, steps = arguments.child
        return child(which, folder, case, int(steps))
    for case in arguments.cases:
        if case not in BARS:
            parser.error(f"case {case!r} is not known (known: {', '.join(map(repr, BARS))})")
    with tempfile.TemporaryDirectory() as scratch:
        trl = arguments.trl or str(Path(scratch) / "trl")
        if not arguments.trl:
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", trl, TRL]
            subprocess.run(pip, check=True)
        build(Path(scratch) / "pipeline")
        print(f"torch {torch.__version__}, {TRL}, {platform.machine()} CPU, 1 thread, processor time, batch {BATCH}")
        print(f"\n  {'':<20}{'ours s':>9}{'TRL s':>9}{'ratio':>8}{'bar':>7}{'ours +MiB':>11}{'TRL +MiB':>10}")
        results = {}
        for case in arguments.cases or BARS:
            found = results[case] = compare(
                str(Path(scratch) / "pipeline"), case, arguments.rounds, arguments.steps, trl
            )
            mine, other = found["ours"], found["trl"]
            print(
                f"  {case:<20}{mine['seconds']:>9.3f}{other['seconds']:>9.3f}{found['ratio']:>8.3f}{found['bar']:>7.2f}"
                f"{mine['added']:>11.0f}{other['added']:>10.0f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
