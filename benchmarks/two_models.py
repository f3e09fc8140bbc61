"""Annealed importance guidance in one model, one pass, against two whole models, as NeMo-Aligner keeps them.

    python -m benchmarks.two_models [--model tiny] [--batch 1 4] [--rounds 7]

Both sides are the same StableDiffusionPipeline at constant:0.5, so that every step makes both predictions: one with
`aig.annealed`, one with a stand-in that calls a base model and a second whole model, which holds the LoRA beside its
weights (as in training) or fused into them. They run in turns on one thread; times are process CPU time, and a ratio is
the median over rounds of ours over theirs. A warm-up round is left out. Weights are the bytes of the parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

import aig
from aig import adapters, schedules

BARS = {1: 0.85}  # time ratio allowed by batch; 1.0 above
STEPS, LEVEL, GUIDANCE = 4, 0.5, 3.0
# A UNet wide enough that its matrix products dominate, as they do in a real one: SD1's layout at a tenth of its size.
UNET = {
    "sample_size": 16,
    "block_out_channels": (96, 192, 384),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 256,
    "attention_head_dim": 8,
}


class TwoModels(nn.Module):
    """Two whole denoisers, each called once a step, and their predictions mixed."""

    def __init__(self, base: UNet2DConditionModel, tuned: UNet2DConditionModel) -> None:
        super().__init__()
        self.base, self.tuned = base, tuned
        self.config, self.dtype, self.device = base.config, base.dtype, base.device

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        base, tuned = self.base(*args, **kwargs)[0], self.tuned(*args, **kwargs)[0]
        return (schedules.mix(base, tuned, LEVEL),)


def unet(model: str, with_adapter: bool) -> UNet2DConditionModel:
    """The same weights each time; the adapter is attention's, of rank 8."""
    torch.manual_seed(0)
    denoiser: Any = aig.load("tiny").denoiser if model == "tiny" else UNet2DConditionModel(**UNET)
    if with_adapter:
        adapters.attach(denoiser, "tuned")
        for parameter in adapters.parameters(denoiser, "tuned"):
            parameter.data.normal_(std=0.02)
    return denoiser.requires_grad_(False).eval()


def fused(model: str) -> UNet2DConditionModel:
    """The tuned model as a whole copy, without adapter layers."""
    denoiser: Any = unet(model, with_adapter=True)
    denoiser.fuse_lora()
    denoiser.unload_lora()
    return denoiser


def pipeline(denoiser: nn.Module) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=denoiser,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sampler(pipe: StableDiffusionPipeline, batch: int) -> Callable[[], torch.Tensor]:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    config = pipe.unet.config
    embeddings, empty = torch.randn(2, batch, 77, config.cross_attention_dim, generator=generator)
    noise = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    return lambda: pipe(
        prompt_embeds=embeddings, negative_prompt_embeds=empty, latents=noise, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="latent",
    ).images  # fmt: skip


def weight(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in module.parameters()}.values())


def compare(batch: int, rounds: int, pipes: dict[str, StableDiffusionPipeline]) -> None:
    """Print each side's seconds, and the median over rounds of the first's time over each other's."""
    runs = {name: sampler(pipe, batch) for name, pipe in pipes.items()}
    outs = [run() for run in runs.values()]
    gap = max(((out - outs[0]).abs().max() / outs[0].abs().max()).item() for out in outs)
    if gap > 1e-3:
        raise RuntimeError(f"the sides differ by {gap:.1e} of the largest latent: they do not do the same work")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs) if i % 2 else list(runs)[::-1]:
            begun = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - begun)
    ours, *others = times.values()
    ratios = [statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) for theirs in others]
    seconds = "".join(f"{statistics.median(values):>20.3f}" for values in times.values())
    print(
        f"{batch:>5}{seconds}{''.join(f'{ratio:>12.3f}' for ratio in ratios)}{BARS.get(batch, 1.0):>7.2f}", flush=True
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "wide"], default="tiny", help="embedded, or SD1's layout, 38 M")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8], help="images a batch (default: 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    model = arguments.model
    base = unet(model, with_adapter=False)
    pipes = {
        "one model, one pass": aig.annealed(pipeline(unet(model, with_adapter=True)), f"constant:{LEVEL}"),
        "two, LoRA beside": pipeline(TwoModels(base, unet(model, with_adapter=True))),
        "two, LoRA fused": pipeline(TwoModels(base, fused(model))),
    }
    sizes = {name: weight(pipe.unet) for name, pipe in pipes.items()}
    one, beside, whole = sizes.values()
    print(
        f"{model} model, {STEPS} steps, guidance {GUIDANCE}, {arguments.rounds} rounds in turns, CPU seconds, 1 thread"
    )
    print(f"weights, MiB: {one / 2**20:.1f}, {beside / 2**20:.1f}, {whole / 2**20:.1f}; ratios", end=" ")
    print(f"{one / beside:.3f}, {one / whole:.3f} (0.5 but for the LoRA, which one model needs once)\n")
    print(f"{'batch':>5}{''.join(f'{name:>20}' for name in pipes)}{'/ beside':>12}{'/ fused':>12}{'bar':>7}")
    for batch in arguments.batch:
        compare(batch, arguments.rounds, pipes)


if __name__ == "__main__":
    main()
