"""The embedded world's shipped weights: their folder, their verification, and the networks that they fill.

Every file is checked on loading against its SHA-256 in `SHA256SUMS.json`.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aig import digests, folders
from aig.world.networks import BUILDERS, FactorNet, Gold, build

JUDGES = ("judge_a", "judge_b")  # gold is their mean
SUMS = "SHA256SUMS.json"
FIX = "reinstall the package, or make it again with python -m aig.world.train"


def folder(name: str = "") -> Path:
    """The folder of the shipped weights, or the verified folder `name` within it (`tiny`, the text-to-image model).

    ValueError names a file that is missing or corrupt and the fix.
    """
    weights = _beside_or_installed()
    if not name:
        return weights
    verify(weights, name)
    return weights / name


def _beside_or_installed() -> Path:
    """The weights beside this file; if a copy of the code left them out, those of the installed package."""
    beside = Path(__file__).parent / "weights"
    if beside.is_dir():
        return beside
    with suppress(PackageNotFoundError):
        package = distribution("aig")
        url = json.loads(package.read_text("direct_url.json") or "{}").get("url", "")
        # An editable installation has no files of its own but names the source.
        for root in (str(package.locate_file("")), url2pathname(urlparse(url).path)):
            if (Path(root) / "aig" / "world" / "weights").is_dir():
                return Path(root) / "aig" / "world" / "weights"
    return beside


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of(name: str, weights: Path | None = None) -> str:
    """A hash, 32 hex digits, of the weights files of a network by its name in `load`."""
    weights = folder() if weights is None else Path(weights)
    files = [f"{part}.safetensors" for part in (JUDGES if name == "gold" else (name,))]
    for file in files:
        verify(weights, file)
    return digests.of_files({file: weights / file for file in files})


def seal(weights: Path) -> dict[str, str]:
    """Write `SHA256SUMS.json` for all files under `weights`; returns relative path -> SHA-256."""
    files = sorted(p for p in weights.rglob("*") if p.is_file() and p.name != SUMS and not p.name.startswith("."))
    sums = {p.relative_to(weights).as_posix(): digest(p) for p in files}
    with folders.whole_file(weights / SUMS) as part:
        part.write_text(json.dumps(sums, indent=2) + "\n")
    return sums


def verify(weights: Path, name: str = "") -> None:
    """Check files under `weights` against its `SHA256SUMS.json`: all, or only the file or folder called `name`.

    ValueError names the first file that is missing, unknown or corrupt and the fix.
    """
    listing = weights / SUMS
    if not listing.is_file():
        raise ValueError(f"weights: {listing} is missing: {FIX} and seal it (python -m aig.world.train seal)")
    try:
        sums = json.loads(listing.read_text())
    except ValueError as error:
        raise ValueError(f"weights: {listing} is not JSON ({error}): {FIX}") from error
    listed = {path: sum_ for path, sum_ in sums.items() if not name or path == name or path.startswith(name + "/")}
    if not listed:
        raise ValueError(f"weights: {weights / name} is not listed in {SUMS}: {FIX}")
    for path, sum_ in listed.items():
        if not (weights / path).is_file():
            raise ValueError(f"weights: {weights / path} is missing: {FIX}")
        if digest(weights / path) != sum_:
            raise ValueError(f"weights: {weights / path} is corrupt (its SHA-256 is not the one in {SUMS}): {FIX}")


def halved(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def save(net: nn.Module, path: Path) -> Path:
    """Write a network's weights as safetensors in fp16, atomically."""
    with folders.whole_file(path) as part:
        save_file({key: halved(value.detach().cpu().contiguous()) for key, value in net.state_dict().items()}, part)
    return path


def read(name: str, path: Path) -> nn.Module:
    """Load the network `name` from `path`, unverified: in fp32, eval mode, frozen."""
    net = build(name)
    try:
        net.load_state_dict(load_file(path))  # copies into fp32
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"weights: {path} does not fit the network {name!r} ({error}): {FIX}") from error
    return net.eval().requires_grad_(False)


def load(name: str, weights: Path | None = None) -> nn.Module:
    """Load a shipped network by name, in fp32, eval mode and frozen: gradients reach only the images.

    `fragile` and `robust` are rewards, `judge_a` and `judge_b` the judges, `gold` both, `features` the extractor.
    ValueError for another name, and if the weights (by default the package's own) are missing or corrupt.
    """
    weights = folder() if weights is None else Path(weights)
    if name == "gold":
        judges = [load(judge, weights) for judge in JUDGES]
        return Gold(*[judge for judge in judges if isinstance(judge, FactorNet)]).eval()
    if name not in BUILDERS:
        raise ValueError(f"unknown network {name!r} of the embedded world: choose among {', '.join(BUILDERS)}, gold")
    verify(weights, f"{name}.safetensors")
    return read(name, weights / f"{name}.safetensors")
