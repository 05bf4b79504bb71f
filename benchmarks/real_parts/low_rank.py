"""A trained model as a small change of the model that its training began with.

python benchmarks/real_parts/low_rank.py write BEFORE AFTER CHANGE [--rank 32] [--share 0.97] [--whole NAME]
python benchmarks/real_parts/low_rank.py apply BEFORE CHANGE AFTER

`write` keeps the difference of each changed weight as two factors of a low rank, in 8 bits, in `change.safetensors`.
Weights that BEFORE lacks stay whole, and beside the file are the other files that differ. The rank is the smallest that
keeps `--share` of the squared difference, and at most `--rank`. `apply` writes the trained model, the same on every
machine. It is not AFTER to the bit: measure it, and go on from it.
"""

import argparse
import filecmp
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS, CHANGE = "model.safetensors", "change.safetensors"
PARTS = ("left", "right", "scale")


def factors(difference: Tensor, rank: int, share: float) -> dict[str, Tensor] | None:
    """Returns the factors whose product is nearest to a difference; None if they are not smaller.

    They are `left` (out, rank) and `right` (rank, in) as int8, and `scale` (rank,) of their products.
    """
    matrix = difference.squeeze().double()
    if matrix.dim() < 2:
        return None
    matrix = matrix.flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values.square().cumsum(0) / values.square().sum()
    rank = min(rank, int((kept < share).sum()) + 1)
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    left, right = left[:, :rank].T, right[:rank]
    largest = [side.abs().amax(dim=1, keepdim=True) for side in (left, right)]
    left, right = (
        (127 * side / most).round().to(torch.int8) for side, most in zip((left, right), largest, strict=True)
    )
    scale = values[:rank] * (largest[0] * largest[1]).squeeze(1) / 127**2
    return {"left": left.T.contiguous(), "right": right.contiguous(), "scale": scale.float()}


def product(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Returns the difference (out, in) in float64, where the order of a sum changes nothing after rounding."""
    return (left.double() * scale.double()) @ right.double()


def write(before: Path, after: Path, change: Path, rank: int, share: float, whole: list[str]) -> None:
    """Writes the change from one folder to another, and prints how much of it the factors keep."""
    kept: dict[str, Tensor] = {}
    square, lost = 0.0, 0.0
    with safe_open(before / WEIGHTS, "pt") as old, safe_open(after / WEIGHTS, "pt") as new:
        before_names = set(old.keys())
        for name in new.keys():  # noqa: SIM118 - not a mapping
            if name not in before_names:
                kept[name] = new.get_tensor(name)
                continue
            difference = new.get_tensor(name).double() - old.get_tensor(name).double()
            if not difference.any():
                continue
            parts = None if any(part in name for part in whole) else factors(difference, rank, share)
            if parts is None:
                kept[name] = difference.bfloat16()
                continue
            kept |= {f"{name}.{part}": values for part, values in parts.items()}
            square += float(difference.square().sum())
            lost += float((difference - product(**parts).view_as(difference)).square().sum())
    change.mkdir(parents=True)
    save_file(kept, change / CHANGE)
    for file in sorted(after.iterdir()):
        if file.name != WEIGHTS and not same(file, before / file.name):
            shutil.copy(file, change)
    megabytes, remaining = (change / CHANGE).stat().st_size / 1e6, 1 - lost / max(square, 1e-300)
    print(f"{len(kept)} tensors, {megabytes:.1f} MB; the factors keep {remaining:.1%} of the squared change")


def apply(before: Path, change: Path, after: Path) -> None:
    """Writes the trained model."""
    changed = {}
    with safe_open(before / WEIGHTS, "pt") as old, safe_open(change / CHANGE, "pt") as differences:
        names, metadata = set(differences.keys()), old.metadata()
        for name in old.keys():  # noqa: SIM118 - not a mapping
            weight = old.get_tensor(name)
            if name in names:
                difference = differences.get_tensor(name).double()
            elif f"{name}.left" in names:
                parts = {part: differences.get_tensor(f"{name}.{part}") for part in PARTS}
                difference = product(**parts).view_as(weight)
            else:
                changed[name] = weight
                continue
            changed[name] = (weight.double() + difference).to(weight.dtype)
        of_old = {*changed, *(f"{name}.{part}" for name in changed for part in PARTS)}
        changed |= {name: differences.get_tensor(name) for name in names - of_old}
    after.mkdir(parents=True)
    for folder in (before, change):
        for file in folder.iterdir():
            if file.name not in (WEIGHTS, CHANGE):
                shutil.copy(file, after)
    save_file(changed, after / WEIGHTS, metadata=metadata)


def same(first: Path, second: Path) -> bool:
    """Whether two files have the same content."""
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def main() -> None:
    """Runs one of both commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, folders in (("write", ("before", "after", "change")), ("apply", ("before", "change", "after"))):
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(folder, type=Path)
    commands.choices["write"].add_argument("--rank", type=int, default=32)
    commands.choices["write"].add_argument("--share", type=float, default=0.97)
    commands.choices["write"].add_argument("--whole", nargs="*", default=[], help="parts of names, kept in full")
    args = parser.parse_args()
    if args.command == "write":
        write(args.before, args.after, args.change, args.rank, args.share, args.whole)
    else:
        apply(args.before, args.change, args.after)


if __name__ == "__main__":
    main()
