"""Closed forms: acceptance length, step time, speedup, best K, break-even."""

from specsim.analytic.api import predict
from specsim.analytic.formulas import acceptance_length, speedup, tpot_distribution
from specsim.analytic.grid import Grid, evaluate
from specsim.analytic.prediction import Prediction, predict_deployment

__all__ = [
    "Grid",
    "Prediction",
    "acceptance_length",
    "evaluate",
    "predict",
    "predict_deployment",
    "speedup",
    "tpot_distribution",
]
