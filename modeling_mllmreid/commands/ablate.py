"""`ablate`: trains and tests every variant of a plan with several seeds, and writes a report with intervals."""

from ..research.ablation.ablation import run_ablation
from ..research.ablation.settings import read_settings


def main(argv: list[str]) -> None:
    """Runs the plan and prints where the report is; a second call continues an interrupted one."""
    settings = read_settings(argv)
    report = run_ablation(settings)
    print(f"report: {report}\nJSON:   {report.with_suffix('.json')}\nruns:   {settings.folder / 'runs'}")
