"""``python -m fastrnn.bench`` is ``fastrnn bench``."""

import sys

from fastrnn.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
