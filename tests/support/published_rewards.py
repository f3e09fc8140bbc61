"""Rewards as their authors compute them, on the tiny weights of `reward_models`: `PUBLISHED[name](files)` gives
`score(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`.

Written out from the authors' code: none of their packages installs beside this project's pins. hpsv2 1.2.0 wants
protobuf < 4 and pytest 7.2.0, image-reward 1.5 timm 0.6.13, simple-aesthetics-predictor 0.1.2 transformers < 5, and
OpenAI's clip setuptools < 82 (pkg_resources).
"""

import open_clip
import reward_models as tiny
import torch
import torchvision.transforms.functional as vision
from open_clip.transform import image_transform
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor, BertTokenizer, CLIPImageProcessorPil

from aig.vision.preprocess import CLIP_MEAN, CLIP_STD


def pil(images):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in tiny.saved(images)]


def published_pickscore(files, backend="pil", scale=None):
    """PickScore's README, with the PIL processor of transformers 4.27.3, which its requirements.txt pins."""
    model = AutoModel.from_pretrained(files.folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(files.folder)
    if backend == "pil":
        processor.image_processor = CLIPImageProcessorPil.from_pretrained(files.folder)
    limits = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}

    def score(images, prompts):
        image = model.get_image_features(**processor(images=pil(images), **limits)).pooler_output
        text = model.get_text_features(**processor(text=prompts, **limits)).pooler_output
        cosines = (image / image.norm(dim=-1, keepdim=True) * text / text.norm(dim=-1, keepdim=True)).sum(dim=-1)
        return cosines * (model.logit_scale.exp() if scale is None else scale)

    return score


def published_open_clip(files, checkpoint, pixels):
    """open_clip's model and tokenizer; `pixels` gives a normalized tensor of a picture."""
    open_clip.add_model_config(files.config)
    model = open_clip.create_model("tiny", pretrained=str(checkpoint)).eval()
    tokenizer = open_clip.get_tokenizer("tiny")

    def score(images, prompts):
        image, text, _ = model(torch.stack([pixels(picture) for picture in pil(images)]), tokenizer(prompts))
        return 100 * (image * text).sum(-1)

    return score


def hpsv2_pixels(picture):
    """hpsv2 1.2.0, src/open_clip/transform.py: the longest side of the float image to the tower's, then black around
    it; an image that has that length is left as it is."""
    image = vision.to_tensor(picture.convert("RGB"))
    scale = tiny.SIZE / max(picture.size)
    if scale != 1:
        height, width = round(picture.height * scale), round(picture.width * scale)
        top, left = (tiny.SIZE - height) // 2, (tiny.SIZE - width) // 2
        canvas = torch.zeros(3, tiny.SIZE, tiny.SIZE)
        small = vision.resize(image, [height, width], vision.InterpolationMode.BICUBIC)
        canvas[:, top : top + height, left : left + width] = small
        image = canvas
    return vision.normalize(image, CLIP_MEAN, CLIP_STD)


def openai_pixels(picture):
    """OpenAI's clip/clip.py, which LAION's simple_inference.py loads, and ImageReward 1.5's ImageReward.py alike."""
    small = vision.resize(picture, tiny.SIZE, vision.InterpolationMode.BICUBIC)
    image = vision.to_tensor(vision.center_crop(small, tiny.SIZE).convert("RGB"))
    return vision.normalize(image, CLIP_MEAN, CLIP_STD)


def published_aesthetic(files):
    """improved-aesthetic-predictor's simple_inference.py: unit embeddings of OpenAI's CLIP through the linear head."""
    model = AutoModel.from_pretrained(files.folder, dtype=torch.float32).eval()
    head = published_head(torch.load(files.head, weights_only=True), "layers.")

    def score(images, prompts):
        pixels = torch.stack([openai_pixels(picture) for picture in pil(images)])
        embedding = model.get_image_features(pixel_values=pixels).pooler_output
        return head(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]

    return score


def published_head(state, prefix):
    """The head as its authors build it: linear layers with dropouts between."""
    sizes = [state[f"{prefix}{place}.weight"].shape for place in (0, 2, 4, 6, 7)]
    first, second, third, fourth, fifth = (nn.Linear(old, new) for new, old in sizes)
    head = nn.Sequential(first, nn.Dropout(0.2), second, nn.Dropout(0.2), third, nn.Dropout(0.1), fourth, fifth)
    head.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return head.eval()


def published_imagereward(files):
    """image-reward 1.5, ImageReward.py."""
    state, tokenizer = torch.load(files.blip), BertTokenizer.from_pretrained(files.bert)
    model, head = tiny.published_blip(state), published_head(state, "mlp.layers.")

    def score(images, prompts):
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        pixels = torch.stack([openai_pixels(picture) for picture in pil(images)])
        features = model(pixels, tokens.input_ids, tokens.attention_mask)
        return (head(features)[:, 0] - 0.16717362830052426) / 1.0333394966054072

    return score


# With nothing of this library's rewards. The CLIP score has no authors' package: it follows the library of its weights.
PUBLISHED = {
    "pickscore": published_pickscore,
    "clip": lambda files: published_pickscore(files, scale=100),
    "open-clip": lambda files: published_open_clip(files, files.first, image_transform(tiny.SIZE, False)),
    "hpsv2": lambda files: published_open_clip(files, files.first, hpsv2_pixels),
    "hpsv2.1": lambda files: published_open_clip(files, files.second, hpsv2_pixels),
    "aesthetic": published_aesthetic,
    "imagereward": published_imagereward,
}
