"""`python -m gendiff` is the command `gendiff`; `accelerate launch -m gendiff` starts it on several devices."""

import sys

from gendiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
