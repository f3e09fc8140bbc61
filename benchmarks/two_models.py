"""Annealed importance guidance in one model, one pass, against two whole models, as NeMo-Aligner keeps them.

    python -m benchmarks.two_models [--batch 1 4] [--rounds 7]

Both sides are the same StableDiffusionPipeline at constant:0.5, so that every step makes both predictions: one with
`aig.annealed`, one with a stand-in that calls a base model and a second whole model, into which the LoRA is fused. The
two run in turns on one thread; times are process CPU time, and the ratio is the median over rounds. A warm-up round is
left out. Weights are the bytes of the parameters each side holds.
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
        self.base, self.tuned, self.config, self.dtype = base, tuned, base.config, base.dtype

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        base, tuned = self.base(*args, **kwargs)[0], self.tuned(*args, **kwargs)[0]
        return (schedules.mix(base, tuned, LEVEL),)


def unet(with_adapter: bool) -> UNet2DConditionModel:
    """The same random weights each time; the adapter is attention's, of rank 8."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(**UNET).requires_grad_(False).eval()
    if with_adapter:
        adapters.attach(model, "tuned")
        for parameter in adapters.parameters(model, "tuned"):
            parameter.data.normal_(std=0.02)
        model.requires_grad_(False)
    return model


def fused() -> UNet2DConditionModel:
    """The tuned model as a whole copy, without adapter layers."""
    model = unet(with_adapter=True)
    model.fuse_lora()
    model.unload_lora()
    return model


def pipeline(denoiser: nn.Module) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=denoiser, scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sampler(pipe: StableDiffusionPipeline, batch: int) -> Callable[[], torch.Tensor]:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    embeddings, empty = torch.randn(2, batch, 77, UNET["cross_attention_dim"], generator=generator)
    noise = torch.randn(batch, 4, UNET["sample_size"], UNET["sample_size"], generator=generator)
    return lambda: pipe(
        prompt_embeds=embeddings, negative_prompt_embeds=empty, latents=noise, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="latent",
    ).images  # fmt: skip


def weight(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in module.parameters()}.values())


def compare(batch: int, rounds: int, ours: Any, theirs: Any) -> float:
    """Print the two sides' seconds, and return the median over rounds of the time ratio."""
    runs = {"two models": sampler(theirs, batch), "one model, one pass": sampler(ours, batch)}
    first, second = (run() for run in runs.values())
    gap = ((first - second).abs().max() / first.abs().max()).item()
    if gap > 1e-3:
        raise RuntimeError(f"the two sides differ by {gap:.1e} of the largest latent: they do not do the same work")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs) if i % 2 else list(runs)[::-1]:
            begun = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - begun)
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    bar = BARS.get(batch, 1.0)
    seconds = "".join(f"{statistics.median(values):>22.3f}" for values in times.values())
    print(f"{batch:>5}{seconds}{ratio:>10.3f}{bar:>7.2f}  {'met' if ratio <= bar else 'MISSED'}", flush=True)
    return ratio


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8], help="images a batch (default: 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    ours = aig.annealed(pipeline(unet(with_adapter=True)), f"constant:{LEVEL}")
    theirs = pipeline(TwoModels(unet(with_adapter=False), fused()))
    one, two = weight(ours.unet), weight(theirs.unet)
    print(
        f"weights: one model {one / 2**20:.1f} MiB, two models {two / 2**20:.1f} MiB, ratio {one / two:.3f} (bar 0.5)"
    )
    print(f"{STEPS} steps, guidance {GUIDANCE}, {arguments.rounds} rounds in turns, seconds of CPU time, one thread\n")
    print(f"{'batch':>5}{'two models':>22}{'one model, one pass':>22}{'ratio':>10}{'bar':>7}")
    for batch in arguments.batch:
        compare(batch, arguments.rounds, ours, theirs)


if __name__ == "__main__":
    main()
