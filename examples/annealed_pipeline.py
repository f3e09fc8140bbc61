"""Annealed importance guidance in a diffusers pipeline, offline, on the embedded tiny model.

    python examples/annealed_pipeline.py            # writes annealed.png

A LoRA is tuned to a reward for a few steps, saved, and loaded as any diffusers program would load it. Then one line
anneals the pipeline. The picture has one row each for the base model, the tuned model and the annealed one (power:2);
columns share their noise and show prompts that the LoRA was not tuned on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

import aig
from aig import adapters, draft, rewards

TUNED_ON = ["a red star", "a blue heart", "a green cross", "a pink circle"]
SHOWN = ["a blue star", "a red heart", "a pink cross", "a green circle"]  # new combinations of the same words


def tune(folder: Path, steps: int) -> None:
    """Tune a LoRA of the tiny model with DRaFT to its hackable reward, and save it in diffusers' format."""
    model = aig.load("tiny")
    adapters.attach(model.denoiser, "tuned", targets="everywhere")
    optimizer = torch.optim.Adam(adapters.parameters(model.denoiser, "tuned"), lr=3e-3)
    reward, config = rewards.load("fragile"), aig.DraftConfig(model.defaults)
    for step in range(steps):
        prompts, seeds = draft.draw(TUNED_ON, 0, step, 12)
        optimizer.zero_grad()
        aig.train_step(model, reward, "tuned", prompts, seeds, config)
        optimizer.step()
    adapters.save(model.denoiser, "tuned", folder, {"reward": "fragile", "steps": steps})


def sheet(rows: list[list[Image.Image]], zoom: int = 3) -> Image.Image:
    """Arrange rows of equal pictures in one."""
    width, height = (side * zoom for side in rows[0][0].size)
    out = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            out.paste(image.resize((width, height), Image.Resampling.NEAREST), (x * width, y * height))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="tuning steps (default: 20, about a minute on a CPU)")
    parser.add_argument("--out", type=Path, default=Path("annealed.png"))
    arguments = parser.parse_args()

    pipe = aig.load("tiny").pipe  # a StableDiffusionPipeline
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        tune(Path(folder) / "lora", arguments.steps)
        pipe.load_lora_weights(Path(folder) / "lora", adapter_name="tuned")

    rows = []
    for schedule in ("base", "tuned", "power:2"):
        aig.annealed(pipe, schedule)
        noise = torch.Generator().manual_seed(0)
        rows.append(pipe(SHOWN, num_inference_steps=10, guidance_scale=3.0, generator=noise).images)
    sheet(rows).save(arguments.out)
    print(f"wrote {arguments.out}: rows base, tuned, power:2; columns {', '.join(SHOWN)}")


if __name__ == "__main__":
    main()
