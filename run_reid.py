"""MLLMReID from a checkout: `python run_reid.py COMMAND` is the command `mllmreid COMMAND`."""

import sys

from modeling_mllmreid.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
