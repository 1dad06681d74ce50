"""`python -m diffmoe`, the same as `diffmoe`."""

import sys

from diffmoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
