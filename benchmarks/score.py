"""The `score` command against a plain loop over the same model, in CPU time of all their processes, workers included.

300 images of 512 x 512 pixels with a prompt each are scored by HPSv2.1's protocol on a ViT-B/32 with random weights,
on one thread. Both are commands of their own, watched from outside in the same way. Two figures each:

    steady   CPU seconds an image between the first batch's end and the last one's: decoding, preprocessing, the model,
             writing, and all that Ray's processes do beside it. The bar, at most 1.1 of the plain loop's, is on this:
             it is what grows with the folder.
    whole    CPU seconds from start to exit: with imports and loading, which the loop has too, and what Ray takes to
             start and stop, some 20 s whatever the folder and the model are.

ViT-L/14 takes a dozen times as long an image: there the two ratios are 1.062 and 1.109 (LOG.md).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.watching import Usage, watch

ARCHITECTURE = "ViT-B-32"
IMAGES, SIDE, BATCH = 300, 512, 30


def make_folder(folder: Path, images: int, side: int) -> None:
    """Images of smooth noise, as large as photographs are when they are saved, with a prompt each."""
    folder.mkdir()
    draws, rows = np.random.default_rng(0), []
    for i in range(images):
        coarse = Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a photograph of {i} red foxes in the snow"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_weights(path: Path, architecture: str) -> None:
    """A checkpoint in HPSv2's format with random weights."""
    import open_clip  # here, since the parent needs it for this alone

    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    torch.save({"state_dict": {name: tensor.half() for name, tensor in model.state_dict().items()}}, path)


def plain_loop(folder: Path, parts: Path, specification: str, batch: int) -> None:
    """What one would write without us; it leaves a file a batch, to be watched by."""
    from aig import rewards

    torch.set_num_threads(1)
    reward = rewards.load(json.loads(specification))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    parts.mkdir()
    for first in range(0, len(rows), batch):
        chosen = rows[first : first + batch]
        pixels = np.stack([np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in chosen])
        scores = rewards.report(reward, torch.from_numpy(pixels).permute(0, 3, 1, 2), [row["text"] for row in chosen])
        (parts / f"part-{first}.parquet").write_text(json.dumps(scores.tolist()))


def score(
    device: str, images: int = IMAGES, side: int = SIDE, architecture: str = ARCHITECTURE, batch: int = BATCH
) -> dict[str, Usage]:
    """CPU seconds of the plain loop and of the `score` command."""
    if device != "cpu":
        print("\nscoring a folder against a plain loop: on the CPU only")
        return {}
    with tempfile.TemporaryDirectory() as place:
        folder, weights, out = Path(place) / "images", Path(place) / "weights.pt", Path(place) / "scores.parquet"
        make_folder(folder, images, side)
        make_weights(weights, architecture)
        reward = {"name": "hpsv2.1", "weights": str(weights), "architecture": architecture}
        loop = [str(folder), str(Path(place) / "parts"), json.dumps(reward), str(batch)]
        command = ["score", str(folder), "--reward", "bench", "--out", str(out), f"evaluate.score_batch={batch}"]
        command += [f"rewards.define={json.dumps({'bench': reward})}", "ray.address=local"]
        runs = {
            "plain loop": ([sys.executable, "-m", "benchmarks.score", *loop], "parts/part-*"),
            "score": ([sys.executable, "-m", "pipelines", *command], f".{out.name}.*.parts/part-*"),
        }
        found = {name: watch(line, Path(place), pattern, images, batch) for name, (line, pattern) in runs.items()}
    print(f"\nscoring {images} images of {side} px with {architecture}, CPU time of all processes, 1 thread")
    print(f"  {'':<34}{'wall':>9}{'whole':>9}{'ratio':>8}{'steady/image':>15}{'ratio':>8}")
    plain = found["plain loop"]
    for name, used in found.items():
        whole, steady = used.whole / plain.whole, used.steady / plain.steady
        print(f"  {name:<34}{used.wall:>8.1f}s{used.whole:>8.1f}s{whole:>8.3f}{used.steady:>14.4f}s{steady:>8.3f}")
    print(f"  score, steady, by process: {found['score'].costliest(6)}")
    return found


if __name__ == "__main__":
    plain_loop(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
