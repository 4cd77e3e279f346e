"""`python -m fastsr`."""

import sys

from fastsr.cli import main

sys.exit(main())
