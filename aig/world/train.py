"""Train, check and seal the embedded world's models: `python -m aig.world.train --out DIR {base,fragile,...}`."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import torch

from aig.world import check_scores, train_base, train_scores, weights
from aig.world.training import Recipe


def add_recipe(commands, name: str, recipe: Recipe, help_text: str) -> None:
    command = commands.add_parser(name, help=help_text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in fields(recipe):
        default = getattr(recipe, field.name)
        command.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default, help=" ")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m aig.world.train", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="torch threads of this process (default: torch's own)")
    parser.add_argument("--out", type=Path, help="folder of checkpoints, logs and weights; needed for training")
    commands = parser.add_subparsers(dest="command", required=True)
    recipes: dict[str, Recipe] = {"base": train_base.BaseConfig(), **train_scores.RECIPES}
    for name, recipe in recipes.items():
        add_recipe(commands, name, recipe, "the text-to-image model" if name == "base" else f"the network {name!r}")
    commands.add_parser("all-scores", help="the rewards, the judges and the feature extractor, one after another")
    for name, text in (
        ("check", "print held-out accuracies of all weights in a folder"),
        ("seal", "write SHA256SUMS.json for all weights in a folder"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--weights", type=Path, default=weights.folder(), help="default: the package's own")
        if name == "check":
            command.add_argument("--pairs", type=int, default=8192, help="held-out pairs and scenes (default: 8192)")
            command.add_argument("--samples", type=int, default=480, help="samples of the base model (default: 480)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.command == "check":
        check_scores.check(arguments.weights, arguments.pairs, arguments.samples, device)
    elif arguments.command == "seal":
        print(f"sealed {len(weights.seal(arguments.weights))} files in {arguments.weights}")
    elif arguments.out is None:
        parser.error(f"{arguments.command} needs --out DIR")
    elif arguments.command == "all-scores":
        for name, recipe in train_scores.RECIPES.items():
            train_scores.train(name, recipe, arguments.out, device)
    else:
        recipe = recipes[arguments.command]
        recipe = replace(recipe, **{f.name: getattr(arguments, f.name) for f in fields(recipe)})
        if isinstance(recipe, train_base.BaseConfig):
            train_base.train(recipe, arguments.out, device)
        else:
            train_scores.train(arguments.command, recipe, arguments.out, device)


if __name__ == "__main__":
    main()
