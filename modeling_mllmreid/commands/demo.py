"""`demo`: trains and evaluates a tiny model on rendered pedestrians, without a download."""

from ..options.arguments import MethodArguments
from ..options.parser import parse
from ..research.demo import DemoArguments, DemoOptions, run_demo
from ..research.tiny_llava import TinyArguments
from ..training.arguments import ReIDTrainingArguments
from ..training.batch_arguments import BatchArguments
from ..utils.shipped import CONFIGS


def main(argv: list[str]) -> None:
    """Runs the demo, by default with the recipe `demo.yaml`, and prints where its results are."""
    if not argv or argv[0].startswith("--"):
        argv = [str(CONFIGS / "demo.yaml"), *argv]
    groups = (DemoArguments, TinyArguments, MethodArguments, BatchArguments, ReIDTrainingArguments)
    options = DemoOptions(*parse(groups, argv, "demo"))
    report = run_demo(options)
    folder = options.folder
    print(f"\ncheckpoint:   {folder}\nranked sheet: {folder / 'sheet.png'}\nmetrics:      {folder / 'metrics.json'}")
    print(f"time:         {report['seconds']:.0f} s")
