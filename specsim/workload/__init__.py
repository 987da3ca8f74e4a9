"""Who asks for what, and when: arrivals, lengths and request traces as columns."""

from specsim.workload.arrivals import ArrivalProcess, arrival_times
from specsim.workload.lengths import LengthLaw, draw_lengths
from specsim.workload.requests import Requests, TrafficMix, generate
from specsim.workload.traces import Trace, read_trace

__all__ = [
    "ArrivalProcess",
    "LengthLaw",
    "Requests",
    "Trace",
    "TrafficMix",
    "arrival_times",
    "draw_lengths",
    "generate",
    "read_trace",
]
