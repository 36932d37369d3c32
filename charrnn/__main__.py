"""`python -m charrnn` is the command `charrnn`."""

import sys

from charrnn.cli import main

sys.exit(main())
