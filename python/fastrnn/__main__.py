"""``python -m fastrnn`` is the command ``fastrnn``."""

import sys

from .cli import main

sys.exit(main())
