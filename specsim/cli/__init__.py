"""The command line: the only package that prints.

Every command module is imported when its command runs, so that `specsim predict` starts
without scipy, pandas, matplotlib or simpy.
"""

from specsim.cli.main import main

__all__ = ["main"]
