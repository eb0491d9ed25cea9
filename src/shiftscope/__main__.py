"""`python -m shiftscope` is the same as `shiftscope`."""

from shiftscope.cli import main

main()
