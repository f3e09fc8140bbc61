"""Lemma 1 of arXiv 2409.06493 and the optimum with a KL penalty, on a grid and in a small 2-D diffusion model.

    python examples/lemmas.py            # prints two tables, writes three figures into lemmas/

On a grid, gradient ascent on the expected reward ends in a point mass at the reward's argmax; with a KL penalty of
weight λ it ends in p_base exp(r/λ) / Z, and that optimum mixed with the base at weight w is the optimum of λ/w. The
diffusion model has six modes and an MLP as its denoiser. DRaFT tunes it to a proxy that overrates a region without
data; base, tuned, KL-regularized and annealed points are then compared. Under a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle
from torch import Tensor, nn
from torch.nn import functional as F

import aig
from aig import adapters, draft
from pipelines.report import style
from pipelines.report.style import INK, MARK, MUTED

KL_WEIGHTS = (0.25, 0.5, 1.0, 2.0)
MIX_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)


def grid_world(states: int = 41) -> tuple[Tensor, Tensor, Tensor]:
    """Places, base probabilities and rewards of the states; the argmax lies where the base has little mass."""
    x = torch.linspace(-3, 3, states, dtype=torch.float64)
    bumps = [
        weight * (-((x - mean) ** 2) / (2 * 0.35**2)).exp() for mean, weight in ((-1.8, 0.45), (0, 0.35), (1.8, 0.2))
    ]
    base = sum(bumps, torch.full_like(x, 1e-4))
    reward = 1.5 * (-((x - 2.4) ** 2) / 0.5).exp() + 0.3 * x.sin()
    return x, base / base.sum(), reward


def ascend(base: Tensor, reward: Tensor, kl_weight: float, steps: int = 3000, rate: float = 0.5) -> Iterator[Tensor]:
    """The distributions (S,) of gradient ascent on E_p[r] - λ KL(p || base) from the base, after 0, 1, ... steps.

    The natural gradient of a softmax in its logits is the objective's gradient in p; it converges for λ * rate < 2.
    """
    logits = base.log()
    for _ in range(steps):
        p = logits.softmax(0).requires_grad_()
        objective = p @ reward - (kl_weight * (p @ (p / base).log()) if kl_weight else 0.0)
        yield p.detach()
        logits = logits + rate * torch.autograd.grad(objective, p)[0]
    yield logits.softmax(0)


def optimum(base: Tensor, reward: Tensor, kl_weight: float) -> Tensor:
    """The closed form: p_base exp(r/λ) / Z, and without a penalty the point mass at the argmax (Lemma 1)."""
    if kl_weight == 0:
        return F.one_hot(reward.argmax(), len(reward)).to(reward)
    return (base.log() + reward / kl_weight).softmax(0)


def mixed(base: Tensor, tuned: Tensor, w: float) -> Tensor:
    """The geometric mix p_base^(1-w) p_tuned^w / Z, for w above 1 too."""
    return torch.lerp(base.log(), tuned.log(), w).softmax(0)


def entropy(p: Tensor) -> float:
    """Entropy in nats."""
    return -torch.xlogy(p, p).sum().item()


MODES, RADIUS, SPREAD = 6, 1.4, 0.12
_ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTRES = RADIUS * torch.stack([_ANGLES.cos(), _ANGLES.sin()], dim=1)  # (MODES, 2)
EXPLOIT = 4.0


class PointDenoiser(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """An MLP that predicts the velocity v at points (B, 2, 1, 1)."""

    @register_to_config
    def __init__(self, width: int = 128, frequencies: int = 4) -> None:
        super().__init__()
        self.register_buffer("omega", torch.arange(1, frequencies + 1) * math.pi, persistent=False)
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in (2 + 2 * frequencies, width, width))
        self.out = nn.Linear(width, 2)
        for weight in (parameter for parameter in self.layers.parameters() if parameter.ndim > 1):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phases = (t / 1000).reshape(-1, 1).expand(len(x), 1) * self.omega
        h = torch.cat([x.flatten(1), phases.sin(), phases.cos()], dim=1)
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.out(h).view_as(x)


class PointModel:
    """`aig.Model` for points in the plane: no text, no guidance, and an image is the point itself."""

    name, prefix, latent_shape, image_size = "points", "transformer", (2, 1, 1), (1, 1)
    device, dtype = torch.device("cpu"), torch.float32
    defaults = aig.Sampling(steps=25, guidance=1.0, block=1, max_rows=4096)

    def __init__(self, denoiser: PointDenoiser) -> None:
        self.denoiser: Any = denoiser
        kind = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
        self.scheduler: Any = DDIMScheduler(**kind)

    def encode(self, prompts: Sequence[str], negative: str = "", distilled: float | None = None) -> aig.Condition:
        nothing = torch.zeros(len(prompts), 1, 1)
        return aig.Condition({"encoder_hidden_states": nothing}, {"encoder_hidden_states": nothing[:1]})

    def predict(
        self, x_t: Tensor, t: Tensor, condition: aig.Condition, adapters: Sequence[str], guidance: float
    ) -> Tensor:
        with aig.adapters.routed(self.denoiser, adapters):
            return self.denoiser(x_t, t)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)


def train_base(steps: int = 3000, batch: int = 256) -> PointModel:
    """Train the denoiser on the mixture of Gaussians: some seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PointModel(PointDenoiser())
        optimizer = torch.optim.Adam(model.denoiser.parameters(), lr=5e-3)
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            x = (CENTRES[torch.randint(MODES, (batch,))] + SPREAD * torch.randn(batch, 2)).view(
                batch, *model.latent_shape
            )
            noise, t = torch.randn_like(x), torch.randint(1000, (batch,))
            target = model.scheduler.get_velocity(x, noise, t)
            loss = F.mse_loss(model.denoiser(model.scheduler.add_noise(x, noise, t), t), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            annealing.step()
    model.denoiser.requires_grad_(False)
    return model


def squared_distances(points: Tensor) -> Tensor:
    """Squared distances (B, MODES) of points (B, ...) to the modes."""
    return (points.reshape(-1, 1, 2) - CENTRES).square().sum(dim=2)


def gold(points: Tensor) -> Tensor:
    """What is wanted, (B,): far to the right, near a mode."""
    nearest = -0.05 * torch.logsumexp(-squared_distances(points) / 0.05, dim=1)  # a smooth minimum
    return points.reshape(-1, 2)[:, 0] - 1.5 * nearest


def proxy(points: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """What is trained on, (B,): gold, and a term that grows to the right of all data, where it is exploitable."""
    beyond = points.reshape(-1, 2)[:, 0] - (RADIUS + 0.3)
    return gold(points) + EXPLOIT * 0.1 * F.softplus(beyond / 0.1)


def tune(
    model: PointModel, name: str, kl_weight: float, steps: int, watch: Callable[[int], None], every: int = 10
) -> None:
    """Tune a LoRA with DRaFT through all denoising steps; `watch(step)` is called every so many steps."""
    adapters.attach(model.denoiser, name, rank=4, alpha=4, targets=["layers.0", "layers.1", "layers.2", "out"])
    config = aig.DraftConfig(model.defaults, k=model.defaults.steps, kl_weight=kl_weight, micro_batch=128)
    parameters = adapters.parameters(model.denoiser, name)
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    watch(0)
    for step in range(steps):
        prompts, seeds = draft.draw([""], 0, step, 128)
        optimizer.zero_grad()
        aig.train_step(model, proxy, name, prompts, seeds, config)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            watch(step + 1)


@dataclass(frozen=True)
class Measures:
    """What is measured of an arm's points."""

    occupancy: float
    """Entropy in nats of the nearest mode, at most ln 6 = 1.79."""
    modes: int
    """Modes that are nearest to at least 2 % of the points."""
    spread: float
    """Differential entropy in nats from the distances to the 4th neighbours (Kozachenko and Leonenko 1987)."""
    on_data: float
    """Share of points within four standard deviations of a mode."""
    proxy: float
    gold: float

    @classmethod
    def of(cls, points: Tensor, k: int = 4) -> Measures:
        n, flat = len(points), points.reshape(-1, 2).double()
        squared, nearest = squared_distances(points).min(dim=1)
        shares = nearest.bincount(minlength=MODES).double() / n
        # The first is the point itself; distances of 0 would be minus infinity.
        kth = torch.cdist(flat, flat).topk(k + 1, largest=False).values[:, k].clamp_min(1e-12)
        digamma = torch.digamma(torch.tensor([n, k], dtype=torch.float64))
        spread = digamma[0] - digamma[1] + math.log(math.pi) + 2 * kth.log().mean()
        on_data = (squared < (4 * SPREAD) ** 2).double().mean().item()
        means = proxy(points).mean().item(), gold(points).mean().item()
        return cls(entropy(shares), int((shares >= 0.02).sum()), spread.item(), on_data, *means)


KL_WEIGHT, COLLAPSE = 10.0, 60  # the step at which the unregularized tuning has just collapsed
PALE = "#b4bac3"  # the base's trajectories
WAYS: dict[str, tuple[str | None, str, str, str]] = {  # by name: adapter, schedule, colour, dash
    "base": (None, "base", MUTED, ":"),
    "tuned (KL 0)": ("free", "tuned", INK, "-"),
    "AIG power:2 on KL 0": ("free", "power:2", MARK["aig"], "-"),
    "AIG power:4 on KL 0": ("free", "power:4", MARK["aig"], "--"),
    "KL 10": ("regular", "tuned", MARK["kl"], "-"),
    "KL 10, ramp:0.5,3": ("regular", "ramp:0.5,3", MARK["trial"], "-"),
}


def sample(model: PointModel, arms: Sequence[aig.Arm], points: int) -> dict[str, Tensor]:
    """The arms' points from common noise that tuning never drew."""
    return aig.sample_arms(model, [""] * points, range(points), arms, run_seed=1).latents


def paths(model: PointModel, arm: aig.Arm, points: int) -> Tensor:
    """The trajectories (T + 1, points, 2) of an arm."""
    grid, noise = aig.sampler.Grid(model, model.defaults), aig.sampler.Noise([""] * points, range(points), 1, (2, 1, 1))
    seen: list[Tensor] = []
    with torch.no_grad():
        final = aig.sampler.advance(
            model, model.encode([""] * points), grid.start(noise.initial(), model), [arm], model.defaults, grid=grid,
            observe=lambda i, a, state, mixed, base: seen.append(state.x),
        )  # fmt: skip
    return torch.stack([*seen, final[0].x]).flatten(2)


@dataclass
class Study:
    """Of two tunings, by arm: measures by training step, points, trajectories."""

    curves: dict[str, dict[int, Measures]]
    points: dict[str, Tensor]
    trajectories: dict[str, Tensor]


def compare(model: PointModel, steps: int = 120, points: int = 1000, shown: int = 40) -> Study:
    """Tune without a penalty and with one, and sample every arm.

    The unregularized arms are drawn at `COLLAPSE` or the last step, the regularized ones at the last step.
    """
    study = Study({name: {} for name in WAYS}, {}, {})
    every = [aig.Arm(name, adapter, schedule=schedule) for name, (adapter, schedule, *_) in WAYS.items()]

    def draw(arms: Sequence[aig.Arm]) -> None:
        study.points |= sample(model, arms, points)
        study.trajectories |= {arm.name: paths(model, arm, shown) for arm in arms}

    draw(every[:1])
    begin = Measures.of(study.points["base"])
    for adapter, kl_weight, drawn in (("free", 0.0, min(COLLAPSE, steps)), ("regular", KL_WEIGHT, steps)):
        arms = [arm for arm in every if arm.adapter == adapter]

        def watch(step: int, arms: list[aig.Arm] = arms, drawn: int = drawn) -> None:
            latents = sample(model, arms, points) if step else {}
            for arm in arms:
                study.curves[arm.name][step] = Measures.of(latents[arm.name]) if step else begin
            if step == drawn:
                draw(arms)

        tune(model, adapter, kl_weight, steps, watch)
    study.curves["base"] = {0: begin, steps: begin}
    return study


def draw_grid(path: Path) -> None:
    """The grid: collapse, entropy, the closed form, and weights of the mix."""
    x, base, reward = grid_world()
    figure, ((collapse, decay), (closed, identity)) = style.canvas(9.6, 6.0, 2, 2, top=0.35, between=(0.75, 0.85))
    colors, shades = style.kl_colors([0.0, *KL_WEIGHTS]), style.kl_colors(list(MIX_WEIGHTS))
    runs = {kl: list(ascend(base, reward, kl)) for kl in (0.0, *KL_WEIGHTS)}
    for step, shade in zip((0, 3, 10, 30, 300), [INK, *list(shades.values())[:4]], strict=True):
        collapse.plot(x, runs[0.0][step], color=shade, label=f"after {step} steps" if step else "base")
    collapse.axvline(x[reward.argmax()], color=MUTED, linewidth=1, linestyle=":", label="argmax r")
    for kl, run in runs.items():
        decay.plot(range(1, len(run) + 1), [entropy(p) for p in run], color=colors[kl], label=f"λ = {kl:g}")
    closed.plot(x, base, color=INK, linestyle=":", label="base")
    for kl in KL_WEIGHTS:
        closed.plot(x, optimum(base, reward, kl), color=colors[kl], label=f"λ = {kl:g}")
        closed.plot(x, runs[kl][-1], "o", color=colors[kl], markersize=3.5, markerfacecolor=style.CARD)
    for w, shade in shades.items():
        identity.plot(x, optimum(base, reward, 1 / w), color=shade, label=f"λ = {1 / w:g} (w = {w:g})")
        mix = mixed(base, optimum(base, reward, 1.0), w)
        identity.plot(x, mix, "o", color=shade, markersize=3.5, markerfacecolor=style.CARD)
    collapse.set(title="No penalty: all mass goes to argmax r", yscale="log", ylim=(1e-5, 90))
    decay.set(title="No penalty: the entropy vanishes", xscale="log", yscale="log", ylim=(1e-6, 9))
    decay.set(xlabel="gradient steps", ylabel="entropy in nats")
    closed.set(title="Penalty λ: reached (dots), closed form (lines)")
    identity.set(title="λ = 1 at weight w (dots), optimum of λ/w (lines)")
    for ax in (collapse, closed, identity):
        ax.set(xlabel="state", ylabel="probability")
        ax.legend(loc="upper left", ncols=3 if ax is collapse else 1, columnspacing=1.0, handlelength=1.4)
    decay.legend(loc="lower left")
    style.save_png(figure, path)


def draw_trajectories(study: Study, path: Path) -> None:
    """As figure 1 of the paper: trajectories in the base's colour turn to the arm's as its weight grows."""
    figure, axes = style.canvas(9.6, 6.0, 2, 3, left=0.1, top=0.45, bottom=0.1, between=(0.15, 0.5))
    steps, places = PointModel.defaults.steps, torch.linspace(0, 4, 401)
    best = places[proxy(torch.stack([places, 0 * places], dim=1)).argmax()].item()
    for ax, (name, (_, schedule, color, _)) in zip(axes.flat, WAYS.items(), strict=True):
        for centre in CENTRES.tolist():
            ax.add_patch(Circle(centre, 3 * SPREAD, color=style.GRID, zorder=0))
        curve = aig.parse(schedule)
        pale, full = torch.tensor([to_rgb(PALE), to_rgb(color)])
        shades = [tuple(torch.lerp(pale, full, min(curve(i / steps), 1.0)).tolist()) for i in range(steps)]
        for line in study.trajectories[name].transpose(0, 1):
            pieces = torch.stack([line[:-1], line[1:]], dim=1)
            ax.add_collection(LineCollection(list(pieces.numpy()), colors=shades, linewidths=0.9))
        ax.plot(*study.points[name].flatten(1).T, ".", color=color, markersize=2.5, markeredgewidth=0, alpha=0.5)
        ax.plot(best, 0, "*", color=MARK["lora"], markersize=9, zorder=5)
        m = Measures.of(study.points[name])
        words = f"proxy {m.proxy:.2f}, gold {m.gold:.2f}, modes {m.modes}, entropy {m.occupancy:.2f}"
        ax.set(title=f"{name}\n", xlim=(-2.4, 3.5), ylim=(-2.4, 2.4), xticks=[], yticks=[])
        ax.text(0, 1.02, words.replace("-", "−"), transform=ax.transAxes, color=MUTED, fontsize=8)
        ax.spines[:].set_visible(False)
    style.save_png(figure, path)


def draw_training(study: Study, path: Path) -> None:
    """Proxy, gold and the entropy over modes of every arm along training."""
    titles = {"proxy": "proxy (trained on)", "gold": "gold (never trained on)", "occupancy": "entropy over modes, nats"}
    figure, axes = style.canvas(9.6, 3.1, 1, 3, left=0.45, top=0.65, between=(0.45, 0.0))
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for name, (_, _, color, dash) in WAYS.items():
            curve = study.curves[name]
            ax.plot(list(curve), [getattr(m, key) for m in curve.values()], color=color, linestyle=dash, label=name)
        ax.set(title=title, xlabel="training step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=len(WAYS), columnspacing=1.2)
    style.save_png(figure, path)


def print_grid() -> None:
    """The grid's table: how far ascent and mix are from the closed forms."""
    _, base, reward = grid_world()
    print("On a grid: gradient ascent against the closed form (largest difference), entropy in nats")
    for kl in (0.0, *KL_WEIGHTS):
        *_, p = ascend(base, reward, kl)
        gap = (p - optimum(base, reward, kl)).abs().max().item()
        print(f"  λ = {kl:<5g} difference {gap:.1e}   entropy {entropy(p):.2e}   E[r] {(p @ reward).item():.3f}")
    unit = optimum(base, reward, 1.0)
    gaps = [(mixed(base, unit, w) - optimum(base, reward, 1 / w)).abs().max().item() for w in MIX_WEIGHTS]
    print(
        f"  weight w acts as λ/w: largest difference {max(gaps):.1e} for w = {', '.join(f'{w:g}' for w in MIX_WEIGHTS)}"
    )


def print_study(study: Study) -> None:
    """The arms' table."""
    print(f"In the plane: {len(study.points['base'])} points per arm, measured as Measures says")
    print(f"  {'arm':22}{'proxy':>8}{'gold':>8}{'modes':>8}{'entropy':>9}{'spread':>9}{'on data':>9}")
    for name, points in study.points.items():
        m = Measures.of(points)
        print(f"  {name:22}{m.proxy:8.2f}{m.gold:8.2f}{m.modes:8d}{m.occupancy:9.2f}{m.spread:9.2f}{m.on_data:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="tuning steps (default: 120)")
    parser.add_argument("--out", type=Path, default=Path("lemmas"), help="the figures' folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print_grid()
    study = compare(train_base(), arguments.steps)
    print_study(study)
    with style.style():
        draw_grid(arguments.out / "grid.png")
        draw_trajectories(study, arguments.out / "trajectories.png")
        draw_training(study, arguments.out / "training.png")
    print(f"wrote grid.png, trajectories.png and training.png into {arguments.out}")


if __name__ == "__main__":
    main()
