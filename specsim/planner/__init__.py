"""Decisions: which draft, K, policy, batch limit and GPUs; sweeps; what to measure next."""

from specsim.planner.decision import Plan, plan
from specsim.planner.sweeping import Sweep, sweep

__all__ = ["Plan", "Sweep", "plan", "sweep"]
