"""`ablate`: trains and tests every variant of a plan with several seeds, and writes a report with intervals."""

from ..options.parser import read_options
from ..research.ablation.ablation import run_ablation
from ..research.ablation.dry_run import describe_cost
from ..research.ablation.plan import AblationArguments
from ..research.ablation.settings import SHARED_GROUPS, make_settings
from ..research.tiny_llava import TinyArguments

GROUPS = (AblationArguments, TinyArguments, *SHARED_GROUPS)


def main(argv: list[str]) -> None:
    """Runs the plan and prints where the report is; a second call continues an interrupted one."""
    settings = make_settings(read_options(GROUPS, argv, "ablate"))
    if settings.args.dry_run:
        print(describe_cost(settings))
        return
    report = run_ablation(settings)
    print(f"report: {report}\nJSON:   {report.with_suffix('.json')}\nruns:   {settings.folder / 'runs'}")
