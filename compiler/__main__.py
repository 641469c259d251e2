"""The command line as a module, for launchers that start a module: `torchrun --nproc-per-node 2 -m fxpress.compiler
...`.
"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
