"""The page of all methods: python -m fxpress.compiler.methods benchmarks/results/methods.json > docs/methods.md"""

import sys
from pathlib import Path

from .document import methods_document

if len(sys.argv) != 2:
    sys.exit((__doc__ or "").strip())
print(methods_document(Path(sys.argv[1]).read_text("utf-8")), end="")
