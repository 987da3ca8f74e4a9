"""The prediction behind `validation.host`: fitted on passes and on one half of the prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from specsim.acceptance.law import Law
from specsim.catalogue import loader
from specsim.catalogue.specs import Estimate, RuntimeSpec
from specsim.cost.step import decode_step
from specsim.cost.table import Table
from specsim.deployment import NO_DRAFT, Deployment, PlacedModel, make_draft
from specsim.fitting.choose import choose
from specsim.fitting.counts import fit_counts
from specsim.fitting.sequences import StepSequence, tallies_of
from validation.host_plan import FITTED_K
from validation.host_traces import HostTraces, UnitTrace, proposing_share, sequences, table

TARGET = "smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """τ at one K, its standard error (clustered by request), and the share of steps in which
    the drafter proposes anything."""

    tau: float
    tau_error: float
    proposing: float = 1.0


def counted(found: Sequence[StepSequence], num_draft_tokens: int) -> Acceptance:
    """τ at K ≤ the K of the sequences, as counted."""
    fit, _ = fit_counts(tallies_of(found), refuse=False)
    k = num_draft_tokens
    assert fit.survival is not None
    return Acceptance(tau=1 + float(np.sum(fit.survival[:k])), tau_error=fit.length_errors[k - 1])


@dataclass(frozen=True, kw_only=True)
class HostTime:
    """Seconds of a step that no timed pass explains: `step_s` once, `sequence_s` a row,
    `token_s` a drafted token, `draft_step_s` where anything is drafted."""

    step_s: float
    sequence_s: float
    token_s: float
    draft_step_s: float


@dataclass(frozen=True, kw_only=True)
class HostModel:
    """Costs and acceptance of one measurement; see `fit_host`."""

    traces: HostTraces
    source: Table
    host: dict[tuple[str, float], HostTime]  # by method and temperature
    laws: dict[tuple[str, str, float], Law]  # of K = 4, by method, domain and temperature

    def acceptance(
        self, method: str, num_draft_tokens: int, domain: str, temperature: float
    ) -> Acceptance:
        """As counted in the fitting half at this K (early exit: in its steps at a larger K)."""
        units = self._fitting(method, domain, temperature)
        found = counted(sequences(units, _decoded_k(units) or num_draft_tokens), num_draft_tokens)
        share = proposing_share(units, num_draft_tokens)
        return dataclasses.replace(found, proposing=share)

    def extrapolated_tau(
        self, method: str, num_draft_tokens: int, domain: str, temperature: float
    ) -> float:
        """τ at K of the law that the fitting half's steps at K = 4 choose."""
        return self.laws[method, domain, temperature].acceptance_length(num_draft_tokens)

    def _fitting(self, method: str, domain: str, temperature: float) -> list[UnitTrace]:
        return fitting_units(self.traces, method, domain, temperature)

    def step_s(
        self, method: str, num_draft_tokens: int, batch: int, context: float, temperature: float,
        proposing: float, *, at_mean: bool = False,
    ) -> float:  # fmt: skip
        """Mean seconds of a step in which every row proposes K tokens with probability
        `proposing`, or none: the mean over how many of the rows do, since a pass's time is
        not linear in its tokens. `at_mean` takes the pass with the mean number of tokens
        instead, as the closed form does."""
        deployment = deployment_of(method, self.host[method, temperature])
        k = num_draft_tokens
        if k == 0:
            deployment = deployment.without_draft()
        rows = np.arange(batch + 1)
        weight = binom.pmf(rows, batch, proposing if k else 0.0)
        if at_mean:
            rows, weight = np.array([batch * proposing]), np.ones(1)
        time = decode_step(deployment, self.source, k, batch, context, k * rows / batch)
        return float(np.sum(weight * time.seconds))


def _decoded_k(units: Sequence[UnitTrace]) -> int:
    return max(u.num_draft_tokens for u in units)


def fitting_units(
    traces: HostTraces, method: str, domain: str, temperature: float
) -> list[UnitTrace]:
    """Units that acceptance is fitted on.

    Raises:
        ValueError: if there are none.
    """
    units = traces.of(purpose="acceptance", method=method, domain=domain, temperature=temperature)
    if not units:
        raise ValueError(f"no acceptance of {method} on {domain} at temperature {temperature:g}")
    return units


def deployment_of(method: str, host: HostTime) -> Deployment:
    """The decoder: its target and draft, and a runtime that adds the measured host time.
    The GPU plays no part with measured passes."""
    target = PlacedModel(spec=loader.model(TARGET))
    kind, _, layers = method.partition(":")
    draft = NO_DRAFT
    if kind != "none":
        draft = make_draft(target, method=kind, exit_layer=int(layers) if layers else None)
    return Deployment(target=target, draft=draft, gpu=loader.gpu("h100"), runtime=runtime_of(host))


def runtime_of(host: HostTime) -> RuntimeSpec:
    """A runtime whose only costs are the measured ones."""

    def estimate(value: float, source: str) -> Estimate:
        return Estimate(value=value, low=value, high=value, source=source)

    plain = loader.runtime("ideal")
    zero = estimate(0.0, "timed passes include it")
    changes: dict[str, object] = {
        f.name: zero
        for f in dataclasses.fields(plain)
        if isinstance(getattr(plain, f.name), Estimate)
    }
    measured = {
        f.name: estimate(getattr(host, f.name), "host time of the fitting half")
        for f in dataclasses.fields(HostTime)
    }
    changes = {**changes, **measured, "graph_sizes": (), "name": "reference decoder"}
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


_NOTHING = HostTime(step_s=0.0, sequence_s=0.0, token_s=0.0, draft_step_s=0.0)


def fit_host(traces: HostTraces) -> HostModel:
    """Passes as a table, host time by method and temperature, and the laws of K = 4."""
    methods = dict.fromkeys(u.method for u in traces.units if u.num_draft_tokens)
    drafts = {m: deployment_of(m, _NOTHING).draft.model for m in methods}
    source = table(traces, {m: p.spec.name for m, p in drafts.items() if p is not None})
    temperatures = dict.fromkeys(u.temperature for u in traces.of(purpose="host"))
    host = {
        (method, temperature): fit_host_time(traces, method, temperature)
        for method in methods
        for temperature in temperatures
    }
    laws: dict[tuple[str, str, float], Law] = {}
    for u in traces.of(purpose="acceptance"):
        key = (u.method, u.domain, u.temperature)
        laws[key] = choose(sequences(fitting_units(traces, *key), FITTED_K)).law
    return HostModel(traces=traces, source=source, host=host, laws=laws)


def fit_host_time(traces: HostTraces, method: str, temperature: float) -> HostTime:
    """What steps of the fitting half took beyond their passes: least squares with constants
    ≥ 0, errors relative to the step, plain steps and steps of this method.

    Passes of target and draft count as they were timed in the step, so that a machine that was
    slower just then does not look like host time. (Taking the draft's passes as timed apart,
    at the speed of the target's pass of that step, was tried: a machine whose memory is busy
    slows passes of one token more than those of several, and the difference came out as 5 ms
    of host time.) A drafter without passes is host time.
    """
    from scipy.optimize import nnls

    has_passes = deployment_of(method, _NOTHING).draft.model is not None
    design, target = [], []
    for unit in traces.of(purpose="host", temperature=temperature):
        if unit.num_draft_tokens and unit.method != method:
            continue
        rows, drafted, whole = (unit.column(n) for n in ("rows", "drafted", "whole_s"))
        passes = unit.column("verify_s") + has_passes * unit.column("draft_s")
        columns = (np.ones_like(rows), rows, drafted, drafted > 0)
        design.append(np.asarray(np.stack(columns, axis=1), dtype=float) / whole[:, None])
        target.append((whole - passes) / whole)
    if not design:
        raise ValueError(f"no steps of the fitting half of {method} at {temperature:g}")
    matrix, right = np.concatenate(design), np.concatenate(target)
    size = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
    solution, _ = nnls(matrix / size, right)
    step_s, sequence_s, token_s, draft_step_s = (float(x) for x in solution / size)
    return HostTime(
        step_s=step_s, sequence_s=sequence_s, token_s=token_s, draft_step_s=draft_step_s
    )
