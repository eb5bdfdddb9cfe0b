"""``python -m lth_fast``."""

import sys

from lth_fast.cli import main

sys.exit(main())
