"""Extractors in the formats of the published checkpoints, with random weights: small ones where the class allows."""

from __future__ import annotations

from pathlib import Path

import torch
from reward_models import SIZE, randomize
from torchvision.models.inception import Inception3
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from aig.metrics.features import imagenet, inception


def dinov2_folder(path: Path) -> Path:
    """A folder of `Dinov2Model` with its processor, as DINOv2 is published: resized to more than the crop."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8, mlp_ratio=2
    )
    model = Dinov2Model(config)
    randomize(model)
    model.save_pretrained(path)
    crop, mean, std = {"height": SIZE, "width": SIZE}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = BitImageProcessorPil(size={"shortest_edge": 37}, crop_size=crop, image_mean=mean, image_std=std)
    processor.save_pretrained(path)
    return path


def inception_file(folder: Path, name: str) -> Path:
    """The checkpoint file of `inception` or `inception-torchvision` at its one size, saved as theirs are."""
    torch.manual_seed(0)
    with torch.device("meta"):  # initializing 25 million weights takes longer than drawing them
        net = inception.network() if name == "inception" else Inception3(init_weights=False)
    state = {key: drawn(key, tensor) for key, tensor in net.state_dict().items()}
    file = folder / (inception.FILE if name == "inception" else imagenet.PUBLISHED.url.rsplit("/", 1)[1])
    torch.save(state, file)
    return file


def drawn(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """A random tensor of a key's shape that keeps signals at their size through the layers."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if key.endswith(("bn.weight", "running_var")):
        return torch.rand(tensor.shape) + 0.5
    if tensor.ndim < 2:
        return torch.randn(tensor.shape) * 0.1
    return torch.randn(tensor.shape) * (2 / tensor[0].numel()) ** 0.5
