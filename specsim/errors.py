"""Errors that a user can cause. Each message names the value at fault.

`ValueError` is raised for bad arguments of Python functions; the classes below are for
everything that comes from outside (names, files, YAML, logs). The command line turns
both into one line on stderr and exit status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecsimError(Exception):
    """Base of every error that specsim raises about its input."""


class UnknownNameError(SpecsimError):
    """A name that the catalogue does not have; suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name = kind, name
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        known_names = ", ".join(names if len(names) <= 24 else [*names[:20], "…"])
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {known_names}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class ConfigError(SpecsimError):
    """A model configuration that cannot be read or is not supported."""


class ScenarioError(SpecsimError):
    """A scenario (YAML, command line, keyword) that is not valid."""


class RecordError(SpecsimError):
    """A record, log or trace file that cannot be read."""


class CalibrationError(SpecsimError):
    """A calibration file that is not valid, or measurements too few to make one."""


class MissingDataError(SpecsimError):
    """Something that must be installed or downloaded first; says how."""


class DoesNotFitError(SpecsimError):
    """The model does not fit in the memory of the GPUs that were asked for."""


class RequestTooLongError(ScenarioError):
    """A request alone needs more KV cache than there is."""
