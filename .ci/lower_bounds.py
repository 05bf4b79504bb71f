"""Prints the lowest version that setup.cfg allows of each requirement, as a file for `CONSTRAINTS` of `.ci/run`."""

import configparser
import re
from pathlib import Path

setup = configparser.ConfigParser()
setup.read(Path(__file__).parents[1] / "setup.cfg")
requirements = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
for name, version in sorted(set(re.findall(r"^([\w-]+)>=([\w.]+)", "\n".join(requirements), re.MULTILINE))):
    print(f"{name}=={version}")
# As in constraints.txt: a CUDA build of it next to a CPU torch breaks transformers' imports.
print("torchvision<0")
