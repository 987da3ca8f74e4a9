"""Measured kernels as a cost source: `Kernels` behind the protocol of `cost.source`."""

from specsim.cost.kernels.source import Kernels

__all__ = ["Kernels"]
