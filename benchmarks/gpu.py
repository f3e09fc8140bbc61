"""Measure Stable Diffusion 1.4 and XL at their real sizes on one CUDA device, with random weights and without a hub.

    python -m benchmarks.gpu                             # both models, at most 9 minutes
    python -m benchmarks.gpu sd14 --json figures.json    # one of them
    python -m benchmarks.gpu --size tiny --device cpu    # the same code on small models, in seconds

DRaFT steps (K = 1) and AIG sampling (base; both predictions in one pass; in two; in two with a whole copy of the
weights) in bfloat16, with and without torch.compile: images a second, peak memory and, where the device's peak is
known, the share of it that the floating-point operations of a run use. What does not fit the memory or the time is
skipped, with a line that says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTokenizer

from aig import adapters, draft
from aig.models import Sampling, around
from aig.models.published import PUBLISHED, SD14, SDXL
from aig.sampler import Arm, sample_arms

MODELS = {"sd14": PUBLISHED[SD14], "sdxl": PUBLISHED[SDXL]}
# The same networks, as narrow and short as they can be.
TINY_UNETS: dict[str, dict[str, Any]] = {
    "sd14": {
        "sample_size": 16, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "cross_attention_dim": 32,
    },
    "sdxl": {
        "sample_size": 16, "block_out_channels": (32, 32, 64), "layers_per_block": 1, "cross_attention_dim": 64,
        "attention_head_dim": (1, 2, 4), "transformer_layers_per_block": 1,
        "projection_class_embeddings_input_dim": 6 * 256 + 32,
    },
}  # fmt: skip
TINY_VAE = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
TINY_TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 32,
}  # fmt: skip

SIDES = {"sd14": (512, 1024), "sdxl": (1024, 512)}  # pixels, the model's own first
SAMPLING = {"sd14": Sampling(25, 7.5, block=1), "sdxl": Sampling(25, 5.0, block=1)}  # arXiv 2409.06493
RANK = 32
# Dense bfloat16 operations a second, by the vendors' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "A10G": 70e12}


@dataclass(frozen=True)
class Case:
    """One line of the table: `run` makes `images` images."""

    name: str
    images: int
    run: Callable[[], object]
    compiled: bool = False


def pipeline(name: str, tiny: bool, device: str, dtype: torch.dtype) -> Any:
    """A diffusers pipeline of the published sizes, its weights drawn where they are to be."""
    model = MODELS[name]
    unet = {**model.denoiser[1], **(TINY_UNETS[name] if tiny else {})}
    vae = {**model.vae, **(TINY_VAE if tiny else {})}
    letters = [chr(c) for c in range(33, 127)]
    tokens = ["<|endoftext|>", "<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def text(kind: str, config: dict[str, Any]) -> Any:
        config = {**config, **(TINY_TEXT if tiny else {}), "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
        return getattr(transformers, kind)(CLIPTextConfig(**config))

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = {"unet": UNet2DConditionModel(**unet), "vae": AutoencoderKL(**vae)}
            parts |= {key: text(*part) for key, part in model.texts.items()}
    finally:
        torch.set_default_dtype(before)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    scheduler = getattr(diffusers, model.scheduler[0])(**model.scheduler[1])
    if name == "sdxl":
        return StableDiffusionXLPipeline(**parts, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler)
    return StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **without)


def build(name: str, tiny: bool, device: str, dtype: torch.dtype) -> Any:
    """The model as `aig.load` returns it, of a pipeline that is here instead of in a folder, with a LoRA "a"."""
    pipe = pipeline(name, tiny, device, dtype)
    model = around(pipe, name, device, dtype)
    rank = 4 if tiny else RANK
    adapters.attach(model.denoiser, "a", rank, rank)
    with torch.no_grad():
        for parameter in adapters.parameters(model.denoiser, "a"):
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return model


def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A smooth function (B,) that costs nothing: what is measured is the model."""
    return torch.sin(3 * images.float()).mean(dim=(1, 2, 3))


def cases(model: Any, name: str, batches: list[int], steps: int, micro_batch: int) -> Iterator[Case]:
    """What is measured of one model at one size, what compiles last."""
    sampling = Sampling(steps, SAMPLING[name].guidance, block=1)
    twice = Sampling(steps, SAMPLING[name].guidance, block=1, passes=2)
    mixed, base = Arm("mixed", "a", 1.0, "power:2"), Arm("base", None, 1.0, "base")
    config = draft.DraftConfig(sampling, micro_batch=micro_batch)

    def sample(arm: Arm, how: Sampling, batch: int) -> Callable[[], object]:
        prompts = [f"a star {i}" for i in range(batch)]
        return lambda: sample_arms(model, prompts, list(range(batch)), [arm], sampling=how)

    def train(batch: int) -> Callable[[], object]:
        parameters = adapters.parameters(model.denoiser, "a")
        prompts = [f"a star {i}" for i in range(batch)]

        def run() -> None:
            for parameter in parameters:
                parameter.grad = None
            draft.train_step(model, reward, "a", prompts, list(range(batch)), config)

        return run

    last = batches[-1]
    for batch in batches:
        yield Case(f"base, batch {batch}", batch, sample(base, sampling, batch))
        yield Case(f"AIG, one pass, batch {batch}", batch, sample(mixed, sampling, batch))
        yield Case(f"AIG, two passes, batch {batch}", batch, sample(mixed, twice, batch))
    yield Case(f"DRaFT K = 1, batch {last}", last, train(last))
    model.denoiser.compile()  # in place: adapters and their routes stay where they are
    yield Case(f"AIG, one pass, batch {last}", last, sample(mixed, sampling, last), True)
    yield Case(f"DRaFT K = 1, batch {last}", last, train(last), True)
    model.denoiser._compiled_call_impl = None
    adapters.full(model.denoiser, "whole")
    for parameter in model.denoiser.parameters():
        parameter.requires_grad_(False)
    for batch in batches:
        whole = Arm("whole", "whole", 1.0, "power:2")
        yield Case(f"AIG, two copies, batch {batch}", batch, sample(whole, twice, batch))


def measure(case: Case, device: str, until: float, peak: float | None) -> dict[str, Any]:
    """Images a second, peak memory and, eagerly, the share of the device's peak; raises where memory does not do."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        if not case.compiled:
            case.run()
    if case.compiled:
        case.run()
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and time.monotonic() + seconds[-1] < until):
        begun = synchronized(cuda)
        case.run()
        seconds.append(synchronized(cuda) - begun)
    median, flops = statistics.median(seconds), counter.get_total_flops()
    return {
        "seconds": seconds, "images_a_second": case.images / median,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "tflop": flops / 1e12 or None, "utilization": flops / median / peak if peak and flops else None,
    }  # fmt: skip


def synchronized(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def line(row: dict[str, Any]) -> str:
    where = (
        f"  {row['model'] + ' ' + str(row['side']):<12}{row['case'] + (', compiled' if row['compiled'] else ''):<36}"
    )
    if "skipped" in row:
        return f"{where}skipped: {row['skipped']}"

    def cell(value: float | None, digits: int) -> str:
        return f"{'-' if value is None else format(value, f'.{digits}f'):>10}"

    return where + cell(row["images_a_second"], 2) + cell(row["peak_gib"], 1) + cell(row["utilization"], 3)


def measured(name: str, arguments: argparse.Namespace, until: float, peak: float | None) -> Iterator[dict[str, Any]]:
    """The rows of one model at each of its sizes, built anew for each: the last case leaves a whole copy behind."""
    tiny, device = arguments.size == "tiny", arguments.device
    for side in (128,) if tiny else SIDES[name]:
        model = build(name, tiny, device, torch.float32 if device == "cpu" else torch.bfloat16).sized(side, side)
        model.encode([""])  # the unconditional half is encoded once, in no case's time
        for row in measured_at(model, name, arguments, until, peak):
            yield {"model": name, "side": side, **row}
        del model
        release(device)


def measured_at(
    model: Any, name: str, arguments: argparse.Namespace, until: float, peak: float | None
) -> Iterator[dict[str, Any]]:
    longest = 0.0 if arguments.size == "tiny" else 20.0  # seconds that a case takes, until one is seen
    for case in cases(model, name, arguments.batches, arguments.steps, arguments.micro_batch):
        told = {"case": case.name, "compiled": case.compiled}
        begun, needed = time.monotonic(), longest * (3 if case.compiled else 1)
        if begun + needed > until:
            yield {**told, "skipped": f"the time is over ({max(until - begun, 0):.0f} s are left, {needed:.0f} needed)"}
        elif case.compiled and arguments.no_compile:
            yield {**told, "skipped": "--no-compile"}
        else:
            try:
                yield {**told, **measure(case, arguments.device, until, peak)}
            except torch.OutOfMemoryError as error:
                yield {**told, "skipped": f"does not fit the memory ({str(error).split('.')[0]})"}
            release(arguments.device)
            longest = max(longest, time.monotonic() - begun) if not case.compiled else longest


def release(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"which of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--size", choices=["real", "tiny"], default="real")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s, the paper's)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="images at once (default: 1 4)")
    parser.add_argument("--micro-batch", type=int, default=1, help="images that carry gradient at once (default: 1)")
    parser.add_argument("--minutes", type=float, default=9.0, help="what all of it may take (default: %(default)s)")
    parser.add_argument("--peak", type=float, help="the device's bfloat16 peak in TFLOP/s, where it is not known")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    for name in arguments.models:
        if name not in MODELS:
            parser.error(f"model {name!r} is not known (known: {', '.join(MODELS)})")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --size tiny --device cpu runs the same code here")
    begun, names = time.monotonic(), arguments.models or list(MODELS)
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    peak = arguments.peak * 1e12 if arguments.peak else next((p for k, p in PEAKS.items() if k in device), None)
    print(f"torch {torch.__version__}, {device}, {arguments.size} size, {arguments.steps} steps", flush=True)
    print(f"  {'':<48}{'images/s':>10}{'GiB':>10}{'of peak':>10}", flush=True)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names, start=1):
        until = begun + 60 * arguments.minutes * i / len(names)  # to each model its share
        for row in measured(name, arguments, until, peak):
            rows.append(row)
            print(line(row), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
        release(arguments.device)
    return rows


if __name__ == "__main__":
    main()
