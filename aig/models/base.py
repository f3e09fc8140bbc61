"""The base class of the families: a frozen diffusers pipeline, its latents and its size."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor, nn
from typing_extensions import Self

from aig.adapters import routed
from aig.models.protocol import Condition, Sampling


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' warnings within the context."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


class LatentModel:
    """A diffusers pipeline (`pipe`), frozen and in eval mode; a subclass reads prompts and calls its denoiser.

    The latents of every family are images (B, C, H, W), even Flux's. Raises ValueError for a latent consistency model.
    """

    prefix: str
    """The denoiser's name in the pipeline."""
    defaults: Sampling
    """The family's, then this pipeline's (`own_defaults`)."""
    patch: ClassVar[int] = 1
    """Latent pixels per side of a patch that the denoiser reads as one."""
    without: ClassVar[dict[str, None]] = {}
    """Parts of the pipeline that are not loaded."""
    upcast: ClassVar[bool] = False
    """Whether the autoencoder overflows in float16 if its configuration has `force_upcast`."""

    def __init__(
        self, folder: Path, name: str, device: torch.device, dtype: torch.dtype, variant: str | None = None
    ) -> None:
        self.pipe = self.open(folder, dtype, variant).to(device)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.name, self.device, self.dtype = name, device, dtype
        self.denoiser: Any = getattr(self.pipe, self.prefix)
        if self.denoiser.config.get("time_cond_proj_dim") is not None:
            raise ValueError(
                f"{name}: its denoiser is a latent consistency model (time_cond_proj_dim is set), which is sampled in "
                "another way: load the model that it was distilled from"
            )
        self.scheduler = self.pipe.scheduler
        self.decode_dtype = dtype
        if self.upcast and dtype == torch.float16 and self.pipe.vae.config.force_upcast:
            self.decode_dtype = torch.float32
            self.pipe.vae.to(torch.float32)
        self.defaults = self.own_defaults()
        self.resize(*(side * self.pipe.vae_scale_factor for side in self.own_latent_size()))

    def open(self, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
        # Parts that the folder names as absent (Stable Diffusion 3 without T5) must be passed as None, or diffusers
        # misses them.
        listed = json.loads((folder / "model_index.json").read_text())
        absent = {name: None for name, part in listed.items() if isinstance(part, list) and part[0] is None}
        return DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True,
            **(absent | self.without),
        )  # fmt: skip

    def own_defaults(self) -> Sampling:
        """The family's sampling, adapted to this pipeline."""
        return self.defaults

    def own_latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the denoiser was trained on."""
        side = self.denoiser.config.sample_size
        return (side, side) if isinstance(side, int) else tuple(side)

    def latent_channels(self) -> int:
        return self.denoiser.config.in_channels

    def largest(self) -> int | None:
        """The longest side in pixels that the denoiser has positions for; None if unbounded."""
        return None

    def sized(self, height: int, width: int) -> Self:
        """The same model, with shared weights, for images of another size in pixels.

        Raises ValueError, with the nearest valid sizes, for one that the autoencoder or the denoiser cannot take.
        """
        other = copy.copy(self)
        other.resize(height, width)
        return other

    def resize(self, height: int, width: int) -> None:
        factor = self.pipe.vae_scale_factor
        unit, largest = factor * self.patch, self.largest()
        for side, pixels in (("height", height), ("width", width)):
            if pixels < unit or pixels % unit:
                lower = max(pixels // unit, 1) * unit
                raise ValueError(
                    f"{side} = {pixels} must be a multiple of {unit} pixels for {self.name} (its autoencoder's factor "
                    f"{factor} times its denoiser's patch {self.patch}): use {lower} or {lower + unit}"
                )
            if largest is not None and pixels > largest:
                raise ValueError(f"{side} = {pixels} is more than {self.name} has places for: use at most {largest}")
        self._unconditional: dict[str, dict[str, Tensor]] = {}  # for the latest negative prompt
        self.image_size = (height, width)
        self.latent_shape = (self.latent_channels(), height // factor, width // factor)

    def readers(self) -> list[tuple[Any, int]]:
        """Each tokenizer with the number of tokens that its text encoder takes."""
        raise NotImplementedError

    def read(self, prompt: str) -> dict[str, Tensor]:
        """The denoiser's inputs for one prompt, by argument, each (1, ...)."""
        raise NotImplementedError

    def read_negative(self, negative: str) -> dict[str, Tensor]:
        """The unconditional half's inputs, as the pipeline makes them for a negative prompt or an empty one."""
        raise NotImplementedError

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `read`'s values without the batch dimension, known before any text encoder is loaded."""
        raise NotImplementedError

    def denoise(self, x_t: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The denoiser's own prediction (B, C, H, W)."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative: str = "", distilled: float | None = None) -> Condition:
        if distilled is not None:
            raise ValueError(f"sampling.distilled = {distilled}: {self.name} reads no guidance scale; leave it unset")
        self._warn_of_cuts([*prompts, negative])
        with quiet():  # the pipeline would warn of each cut again, for each encoder
            # One by one: a batched encoding differs in its last bits, and an image may depend on its prompt alone.
            rows = {prompt: self.read(prompt) for prompt in dict.fromkeys(prompts)}
            if negative not in self._unconditional:
                self._unconditional = {negative: self.read_negative(negative)}
        unconditional = self._unconditional[negative]
        conditional = {name: torch.cat([rows[prompt][name] for prompt in prompts]) for name in unconditional}
        return Condition(conditional, unconditional)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, adapters: Sequence[str], guidance: float) -> Tensor:
        if guidance == 1:
            with routed(self.denoiser, adapters):
                return self.denoise(x_t, t, dict(condition.conditional))
        with routed(self.denoiser, [*adapters, *adapters]):
            both = self.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]) if t.dim() else t, condition.halves())
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        images = vae.decode(self.unscaled(latents).to(self.decode_dtype), return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Convert the denoiser's latents to the autoencoder's."""
        config = self.pipe.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
            return latents * std / config.scaling_factor + mean
        latents = latents / config.scaling_factor
        shift = config.get("shift_factor")
        return latents if shift is None else latents + shift

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps, device=self.device)

    def _warn_of_cuts(self, prompts: Sequence[str]) -> None:
        for prompt in dict.fromkeys(prompts):
            for tokenizer, length in self.readers():
                tokens = len(tokenizer(prompt, verbose=False).input_ids)
                if tokens > length:
                    warnings.warn(
                        f"a prompt has {tokens} tokens but {self.name} reads {length}, and is cut there: {prompt!r}",
                        stacklevel=3,
                    )
                    return
