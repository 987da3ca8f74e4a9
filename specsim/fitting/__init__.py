"""Measurements become a calibration file: an acceptance law and costs, with errors.

`fit_files` reads engine logs, metrics, bench results (`specsim.interop`) and our own
records, and returns a `Fit`.
"""

from specsim.fitting.files import Fit, fit_files

__all__ = ["Fit", "fit_files"]
