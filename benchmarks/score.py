"""The `score` command against a plain loop over the same model, in CPU time of all their processes, workers included.

300 images of 512 x 512 pixels with a prompt each are scored by HPSv2.1's protocol on a ViT-B/32 with random weights,
on one thread. Both are commands of their own, watched from outside in the same way. Two figures each:

    steady   CPU seconds an image between the first batch's end and the last one's: decoding, preprocessing, the model,
             writing, and all that Ray's processes do beside it. The bar, at most 1.1 of the plain loop's, is on this:
             it is what grows with the folder.
    whole    CPU seconds from start to exit: with imports and loading, which the loop has too, and what Ray takes to
             start and stop, some 20 s whatever the folder and the model are.

The published ViT-H/14 takes about forty times as long an image, so there the two figures hardly differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

ARCHITECTURE = "ViT-B-32"
IMAGES, SIDE, BATCH = 300, 512, 30
SAMPLE_SECONDS = 0.1
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    wall: float
    whole: float
    """CPU seconds of all its processes."""
    steady: float
    """CPU seconds an image between the first and the last batch."""
    by_kind: dict[str, float]
    """The same, by kind of process."""


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


def watch(command: list[str], place: Path, pattern: str, images: int, batch: int) -> Usage:
    """Run a command; sample its processes' CPU time and the batches that it has finished, files of a pattern."""
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    family = psutil.Process(process.pid)
    kinds: dict[tuple[int, float], str] = {}
    seconds: dict[tuple[int, float], float] = {}
    marks: dict[int, Counter[str]] = {}
    while process.poll() is None:
        try:
            for member in [family, *family.children(recursive=True)]:
                times = member.cpu_times()
                key = member.pid, member.create_time()
                seconds[key] = times.user + times.system
                kinds[key] = kind_of(member)
        except psutil.NoSuchProcess:  # it ended meanwhile; what it had used is in the sum
            pass
        done = min(images, batch * len(list(place.glob(pattern))))
        used: Counter[str] = Counter()
        for key, amount in seconds.items():
            used[kinds[key]] += amount
        marks.setdefault(done, used)
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stdout.read() if process.stdout else ''}")
    first, last = min(done for done in marks if done), max(marks)
    by_kind = {kind: (marks[last][kind] - marks[first][kind]) / (last - first) for kind in marks[last]}
    return Usage(time.monotonic() - begun, sum(seconds.values()), sum(by_kind.values()), by_kind)


def kind_of(process: psutil.Process) -> str:
    """What a process is to the command: itself, one of Ray's workers by what it does, or another by its program."""
    title = " ".join(process.cmdline())
    if title.startswith("ray::"):
        return title.split("(")[0].split()[0].removeprefix("ray::")
    if "-m pipelines" in title or "-m benchmarks" in title:
        return "command"
    script = next((part for part in process.cmdline() if part.endswith(".py")), process.name())
    return Path(script).stem


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
    top = sorted(found["score"].by_kind.items(), key=lambda item: -item[1])[:6]
    print("  score, steady, by process: " + ", ".join(f"{kind} {each:.4f}" for kind, each in top))
    return found


if __name__ == "__main__":
    plain_loop(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
