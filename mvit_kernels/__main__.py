"""`python -m mvit_kernels` is the command `mvit-kernels`."""

import sys

from mvit_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
