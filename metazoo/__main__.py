"""`python -m metazoo`: what `metazoo up` starts its children with, so that they run in the same environment."""

from metazoo.cli import main

main()
