"""`python -m validation host`: the real decoder on a CPU, predicted from its parts.

Forward passes were timed apart from decoding, acceptance and host time come from one half
of the prompts, and the other half is only compared with: tokens/s, speedup and τ for every
method × K × domain × batch × temperature. A second prediction knows acceptance at K = 4
only. `validation.measure_host` measures, `validation.host_plan` says what.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from validation.host_model import HostModel, counted, fit_host
from validation.host_plan import FITTED_K
from validation.host_traces import DATA, HostTraces, UnitTrace, load_all, sequences
from validation.rows import Row, bounds, comparison, statistic

Z95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One setting of the reported half, measured and predicted. `tau_error` is the standard
    error of predicted minus measured τ, clustered by request in both halves."""

    method: str
    num_draft_tokens: int
    domain: str
    batch: int
    temperature: float
    tokens_per_s: float
    speedup: float
    tau: float
    predicted_tokens_per_s: float
    predicted_speedup: float
    predicted_tau: float
    tau_error: float
    extrapolated_speedup: float
    extrapolated_tau: float
    costs_only_speedup: float  # with the measured τ and share of proposing steps
    at_mean_speedup: float  # with every pass at the mean number of drafted tokens

    @property
    def label(self) -> str:
        """For a row."""
        return (
            f"{self.method} K={self.num_draft_tokens}, {self.domain}, batch {self.batch}, "
            f"temperature {self.temperature:g}"
        )

    @property
    def case(self) -> tuple[str, str, int, float]:
        """Configurations that differ in K only."""
        return self.method, self.domain, self.batch, self.temperature


def rows() -> list[Row]:
    """Every row of every device, those of `data/host-NAME` with NAME in front; none without
    a measurement."""
    return [
        row if folder == DATA.name
        else dataclasses.replace(row, name=f"{folder.partition('-')[2]}: {row.name}")
        for folder, traces in load_all().items()
        for row in rows_of(traces)
    ]  # fmt: skip


def rows_of(traces: HostTraces) -> list[Row]:
    """The rows of one measurement."""
    model = fit_host(traces)
    found = configurations(traces, model)
    return [
        *_single(found),
        *_speedups(found, repeatability(traces)),
        *_plain(traces, model),
        *_choice(found),
        *_lengths(found),
        *_provenance(traces),
    ]


def configurations(traces: HostTraces, model: HostModel) -> list[Configuration]:
    """Every speculative setting of the reported half."""
    reported = traces.of(purpose="report")
    keys = dict.fromkeys(
        (u.method, u.num_draft_tokens, u.domain, u.batch, u.temperature)
        for u in reported
        if u.num_draft_tokens > 0
    )
    return [_configuration(traces, model, *key) for key in keys]


def _configuration(
    traces: HostTraces, model: HostModel, method: str, k: int, domain: str, batch: int,
    temperature: float,
) -> Configuration:  # fmt: skip
    same = {"domain": domain, "batch": batch, "temperature": temperature, "purpose": "report"}
    units = traces.of(method=method, num_draft_tokens=k, **same)
    plain = traces.of(num_draft_tokens=0, **same)
    # measured together; a group of which no step had a full batch says nothing
    groups = {u.group for u in units if _full(u)[0]} & {u.group for u in plain if _full(u)[0]}
    units = [u for u in units if u.group in groups]
    plain = [u for u in plain if u.group in groups]
    # the prompts' lengths are the workload's, known before it runs
    context = float(np.mean([r.prompt_tokens + r.output_tokens / 2
                             for u in plain for r in u.requests]))  # fmt: skip
    fitted = model.acceptance(method, k, domain, temperature)
    extrapolated = model.extrapolated_tau(method, k, domain, temperature)
    plain_s = model.step_s(method, 0, batch, context, temperature, 0.0)
    step_s = model.step_s(method, k, batch, context, temperature, fitted.proposing)
    observed = counted(sequences(units, k), k)
    drafted = np.concatenate([r.drafted for u in units for r in u.requests])
    known = model.step_s(method, k, batch, context, temperature, float(np.mean(drafted > 0)))
    at_mean = model.step_s(method, k, batch, context, temperature, fitted.proposing, at_mean=True)
    return Configuration(
        method=method, num_draft_tokens=k, domain=domain, batch=batch, temperature=temperature,
        tokens_per_s=measured_rate(units), speedup=measured_speedup(units, plain),
        tau=observed.tau,
        predicted_tokens_per_s=batch * fitted.tau / step_s,
        predicted_speedup=fitted.tau * plain_s / step_s, predicted_tau=fitted.tau,
        tau_error=float(np.hypot(observed.tau_error, fitted.tau_error)),
        extrapolated_speedup=extrapolated * plain_s / step_s, extrapolated_tau=extrapolated,
        costs_only_speedup=observed.tau * plain_s / known,
        at_mean_speedup=fitted.tau * plain_s / at_mean,
    )  # fmt: skip


def measured_rate(units: Sequence[UnitTrace]) -> float:
    """Tokens per second over the steps in which the batch was full and no prompt was read:
    a steady state, as predicted."""
    full = [_full(unit) for unit in units]
    return sum(emitted for emitted, _ in full) / sum(seconds for _, seconds in full)


def measured_speedup(units: Sequence[UnitTrace], plain: Sequence[UnitTrace]) -> float:
    """Tokens per second over those of plain decoding, the time of each group of prompts
    counted in its own plain seconds per token: groups that met a slower machine weigh no
    more than others."""
    per_token = {u.group: seconds / emitted for u in plain for emitted, seconds in [_full(u)]}
    emitted, seconds = np.array([_full(u) for u in units]).T
    return float(emitted.sum() / np.sum(seconds / [per_token[u.group] for u in units]))


def _full(unit: UnitTrace) -> tuple[float, float]:
    """Tokens and seconds of the steps with a full batch."""
    full = unit.column("rows") == unit.batch
    return float(unit.column("emitted")[full].sum()), float(unit.column("whole_s")[full].sum())


def repeatability(traces: HostTraces) -> list[float]:
    """Standard error of each setting's measured step over the plain step, relative: what its
    groups of prompts, measured one by one, differ by. Nothing is predicted here."""
    found = []
    for key, units in itertools.groupby(
        sorted(traces.of(purpose="report"), key=_setting), key=_setting
    ):
        _, k, domain, batch, temperature = key
        plain = {
            u.group: u for u in traces.of(purpose="report", num_draft_tokens=0, domain=domain,
                                          batch=batch, temperature=temperature)
        }  # fmt: skip
        pairs = [(u, plain[u.group]) for u in units if k and u.group in plain]
        ratios = [np.log(np.median(u.column("whole_s")) / np.median(p.column("whole_s")))
                  for u, p in pairs if len(u.steps) and len(p.steps)]  # fmt: skip
        if len(ratios) > 1:
            found.append(float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))))
    return found


def _setting(unit: UnitTrace) -> tuple[str, int, str, int, float]:
    return unit.method, unit.num_draft_tokens, unit.domain, unit.batch, unit.temperature


def regrets(found: Sequence[Configuration]) -> dict[tuple[str, str, int, float], float]:
    """Case → what the predicted best K (0: do not draft) loses against the measured best."""
    result = {}
    for case, group in itertools.groupby(sorted(found, key=lambda c: c.case), lambda c: c.case):
        same = list(group)
        measured = [1.0, *(c.speedup for c in same)]
        predicted = [1.0, *(c.predicted_speedup for c in same)]
        result[case] = 1 - measured[int(np.argmax(predicted))] / max(measured)
    return result


def _single(found: Sequence[Configuration]) -> Iterator[Row]:
    for what, unit, predicted, observed in (
        ("speedup", "x", "predicted_speedup", "speedup"),
        ("tokens/s", "tokens/s", "predicted_tokens_per_s", "tokens_per_s"),
        ("τ", "tokens/step", "predicted_tau", "tau"),
    ):
        for c in found:
            row = comparison(
                f"{what}: {c.label}", getattr(c, predicted), getattr(c, observed), unit,
                provenance=f"{c.method}; acceptance and host time of the other prompts",
            )  # fmt: skip
            row.tags.update(batch=c.batch, K=c.num_draft_tokens)
            yield row


def _speedups(found: Sequence[Configuration], spread: Sequence[float]) -> Iterator[Row]:
    limit = bounds("host")
    least = limit["configurations"]
    yield statistic("configurations short of the wanted number", max(0.0, 1 - len(found) / least),
                    bound=0.0, provenance=f"{len(found)} measured, {least} wanted")  # fmt: skip
    for name, attribute in (
        ("acceptance of the other half", "predicted_speedup"),
        (f"acceptance of the other half at K = {FITTED_K} only", "extrapolated_speedup"),
    ):
        error = np.array([abs(getattr(c, attribute) / c.speedup - 1) for c in found])
        note = _worst(found, error)
        yield statistic(f"speedup, {name}: median |error|", np.median(error),
                        bound=limit["speedup_median"], provenance=note)  # fmt: skip
        yield statistic(f"speedup, {name}: 90th percentile", np.quantile(error, 0.9),
                        bound=limit["speedup_p90"], provenance=note)  # fmt: skip
    costs = np.array([abs(c.costs_only_speedup / c.speedup - 1) for c in found])
    yield statistic("speedup, τ as measured (costs alone): median |error|", np.median(costs))
    yield statistic("speedup, τ as measured (costs alone): 90th percentile",
                    np.quantile(costs, 0.9))  # fmt: skip
    mean = [abs(c.at_mean_speedup / c.speedup - 1) for c in found]
    yield statistic("speedup, passes at the mean number of drafted tokens: median |error|",
                    np.median(mean), provenance="as the closed form takes them; above, the mean "
                    "over how many rows propose")  # fmt: skip
    if spread:
        yield statistic(
            "measured step over plain step: standard error, median over settings",
            np.median(spread), provenance="of the measurement itself, from groups of prompts "
            f"measured one by one; 90th percentile {100 * np.quantile(spread, 0.9):.1f} %",
        )  # fmt: skip
    for batch in sorted({c.batch for c in found}):
        own = [abs(c.predicted_speedup / c.speedup - 1) for c in found if c.batch == batch]
        yield statistic(f"speedup, batch {batch}: median |error|", np.median(own),
                        provenance=f"{len(own)} configurations")  # fmt: skip


def _plain(traces: HostTraces, model: HostModel) -> Iterator[Row]:
    errors = []
    for unit in traces.of(purpose="report", num_draft_tokens=0):
        context = float(np.mean([r.prompt_tokens + r.output_tokens / 2 for r in unit.requests]))
        step_s = model.step_s(unit.method, 0, unit.batch, context, unit.temperature, 0.0)
        errors.append(abs(unit.batch / step_s / measured_rate([unit]) - 1))
    yield statistic("plain decoding, tokens/s: median |error|", np.median(errors),
                    provenance=f"{len(errors)} units without drafting")  # fmt: skip


def _worst(found: Sequence[Configuration], error: np.ndarray) -> str:
    """Where the errors beyond a tenth are, and how many of them sampling explains."""
    large = [c for c, e in zip(found, error, strict=True) if e > 0.1]
    if not large:
        return f"{len(found)} configurations"
    domains = {d: sum(c.domain == d for c in large) for d in dict.fromkeys(c.domain for c in large)}
    sampled = sum(abs(c.predicted_tau - c.tau) <= Z95 * c.tau_error for c in large)
    listed = ", ".join(f"{n} {d}" for d, n in domains.items())
    return (
        f"{len(found)} configurations; {len(large)} beyond 10 % ({listed}), of which {sampled} "
        "have a τ within the 95 % interval of so few prompts"
    )


def _choice(found: Sequence[Configuration]) -> Iterator[Row]:
    limit = bounds("host")
    regret = regrets(found)
    lost = [case for case, r in regret.items() if r > limit["regret"]]
    yield statistic(
        "best K: cases with a regret above 2 %", len(lost) / len(regret),
        bound=limit["regret_missed"],
        provenance=f"{len(regret)} cases; "
        + (", ".join(f"{m} {d} b{b} t{t:g}" for m, d, b, t in lost) or "none lost"),
    )  # fmt: skip
    yield statistic("best K: mean regret", np.mean(list(regret.values())))


def _lengths(found: Sequence[Configuration]) -> Iterator[Row]:
    limit = bounds("host")
    outside = [c for c in found if abs(c.predicted_tau - c.tau) > Z95 * c.tau_error]
    yield statistic("τ outside the 95 % interval", len(outside) / len(found),
                    bound=limit["tau_outside_interval"],
                    provenance="interval of the difference of two halves, clustered by request; "
                    f"{len(outside)} of {len(found)} configurations")  # fmt: skip
    larger = [c for c in found if c.num_draft_tokens > FITTED_K]
    if larger:
        same_half = [abs(c.extrapolated_tau / c.predicted_tau - 1) for c in larger]
        yield statistic(f"τ at K = 8 extrapolated from K = {FITTED_K}: median |error|",
                        np.median(same_half), provenance="against the same prompts at K = 8; "
                        f"{len(larger)} configurations")  # fmt: skip
        other = [abs(c.extrapolated_tau / c.tau - 1) for c in larger]
        yield statistic(f"τ at K = 8 extrapolated from K = {FITTED_K}, other prompts: "
                        "median |error|", np.median(other))  # fmt: skip


def _provenance(traces: HostTraces) -> Iterator[Row]:
    note = traces.header["settings"].get("note", "one session")
    shares = [u.core_share for u in traces.units if u.purpose != "acceptance"]
    yield Row(
        name="share of its core that a timed unit lacked, median",
        error=1 - float(np.median(shares)),
        provenance=f"measured by us: {traces.device}; torch {traces.header['versions']['torch']}, "
        f"commit {traces.header['versions'].get('commit', '')}, seed {traces.header['seed']}; "
        + note,
    )  # fmt: skip
