"""`python -m modeling_mllmreid COMMAND` is the command `mllmreid COMMAND`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main())
