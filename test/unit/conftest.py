"""`test` is the standard library's package name, so what tests share is imported by its own name: `import world`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
