"""`specsim.simulate`: a scenario, served."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from specsim.acceptance.law import Law
from specsim.cost.memory import memory
from specsim.cost.source import CostSource
from specsim.deployment import Deployment
from specsim.errors import DoesNotFitError, ScenarioError
from specsim.metrics import Objective
from specsim.scenario.document import Scenario
from specsim.scenario.resolve import resolve
from specsim.scenario.sections import Lengths, Slo
from specsim.simulator.cluster import Cluster, Progress
from specsim.simulator.result import Result
from specsim.simulator.setup import Fault, Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.simulator.trace_log import StepLog
from specsim.units import human_bytes
from specsim.workload.arrivals import ArrivalProcess
from specsim.workload.lengths import LengthLaw
from specsim.workload.requests import Requests, TrafficMix, generate
from specsim.workload.traces import Trace, read_trace

#: Estimated acceptance, before anything was observed, of policies that estimate it.
INITIAL_SHARE_RANGE = (0.05, 0.95)


def simulate(
    scenario: Scenario, *, source: CostSource | None = None, law: Law | None = None,
    max_requests: int | None = None, max_seconds: float | None = None,
    progress: Progress | None = None, log: StepLog | None = None,
) -> Result:  # fmt: skip
    """Serve a scenario's requests and measure what users would.

    Args:
        source: a cost source in place of the scenario's.
        law: an acceptance law in place of the scenario's, for all classes.
        max_requests: at most so many requests; max_seconds: of simulated time.
        progress: called with (requests done, requests in all, simulated seconds).
        log: collects steps for a Chrome trace.

    Returns:
        A `Result`: `.summary()`, `.requests` (DataFrame), `.records`, `.plot()`. After
        Ctrl-C it holds what was finished, and its summary says `interrupted`.

    Raises:
        DoesNotFitError: if the model does not fit; says by how much and what would help.
        SpecsimError: for a scenario or trace that is not valid.
        ValueError: for max_requests < 1 or max_seconds <= 0.

    Example:
        >>> import specsim as ss
        >>> scenario = ss.Scenario.from_dict({
        ...     "target": {"model": "llama-3.1-8b"}, "draft": {"model": "llama-3.2-1b"},
        ...     "hardware": {"gpu": "h100-sxm"}, "acceptance": {"alpha": 0.75},
        ...     "workload": {"arrivals": {"process": "poisson", "rate_per_s": 2.0}},
        ... })
        >>> result = ss.simulate(scenario, max_requests=20)
        >>> len(result.requests)
        20
        >>> bool((result.requests.ttft_s > 0).all())
        True
    """
    setup, warnings = make_setup(scenario, source=source, law=law, max_requests=max_requests)
    if max_seconds is not None and not (max_seconds > 0 and math.isfinite(max_seconds)):
        raise ValueError(f"max_seconds={max_seconds} is not a time > 0")
    cluster = Cluster(setup, log=log)
    cluster.run(max_seconds=max_seconds, progress=progress)
    acceptance = "none" if setup.policy.kind == "off" else acceptance_text(scenario, law)
    return Result(
        cluster=cluster, objectives=objectives(scenario), warnings=tuple(warnings),
        sources={"cost": setup.source.name, "acceptance": acceptance},
    )  # fmt: skip


def make_setup(
    scenario: Scenario, *, source: CostSource | None = None, law: Law | None = None,
    max_requests: int | None = None,
) -> tuple[Setup, list[dict[str, str]]]:  # fmt: skip
    """The plain objects behind a scenario, and warnings about how it was read.

    Raises:
        See `simulate`.
    """
    if max_requests is not None and max_requests < 1:
        raise ValueError(f"max_requests={max_requests} < 1")
    off = scenario.speculation.policy == "off" or scenario.draft.effective_method == "none"
    if off:
        # the baseline has no drafter loaded; what its acceptance would be does not matter
        scenario = without_speculation(scenario)
    resolved = resolve(scenario)
    deployment = resolved.deployment
    warnings: list[dict[str, str]] = []
    names = [traffic.name for traffic in scenario.workload.classes] or [""]
    laws = [resolved.class_laws.get(name, resolved.law) for name in names]
    if law is not None:
        laws = [law] * len(names)
    chosen_source = resolved.source if source is None else source
    k = 0
    if not off:
        k, warning = chosen_k(scenario, deployment, chosen_source, laws[0])
        warnings += warning
    requests, arrivals = requests_of(scenario, max_requests)
    policy = policy_of(scenario, k, laws[0], off=off)
    limits = limits_of(scenario, deployment, requests, policy.largest)
    return (
        Setup(
            deployment=deployment, source=chosen_source, laws=tuple(laws), requests=requests,
            arrivals=arrivals, limits=limits, policy=policy,
            replicas=scenario.hardware.replicas, router=scenario.hardware.router,
            prefill_replicas=scenario.hardware.prefill_replicas,
            kv_link_bytes_per_s=(
                scenario.hardware.kv_link_bytes_per_s or deployment.gpu.link_bytes_per_s
            ),
            seed=scenario.seed,
            proposed=proposed_tokens(deployment, laws, requests, policy.largest),
            faults=tuple(
                Fault(replica=f.replica, stop_s=f.stop_s, restart_s=f.restart_s,
                      recompute=f.requests == "recompute")
                for f in scenario.faults
            ),
        ),
        warnings,
    )  # fmt: skip


def without_speculation(scenario: Scenario) -> Scenario:
    """The baseline of a scenario: no drafter, no acceptance."""
    data = scenario.to_dict()
    data["draft"] = {"method": "none"}
    data["acceptance"] = {"alpha": 0.0}
    for traffic in data["workload"].get("classes", ()):
        traffic.pop("acceptance", None)
    data["speculation"] = {"policy": "off"}
    return Scenario.from_dict(data)


def acceptance_text(scenario: Scenario, law: Law | None) -> str:
    """What the accepted runs rest on, in words."""
    if law is not None:
        return f"{law}, as given"
    return resolve(scenario).acceptance_source


def chosen_k(
    scenario: Scenario, deployment: Deployment, source: CostSource, law: Law
) -> tuple[int, list[dict[str, str]]]:
    """K of the run: the scenario's number; for a range or `auto` under a policy that fixes
    K, the closed form's best at the scenario's operating point; for the others the
    largest that they may choose."""
    candidates = scenario.draft_tokens
    tree = deployment.draft.tree
    if tree is not None:
        if scenario.draft.num_draft_tokens not in ("auto", tree.nodes):
            raise ScenarioError(
                f"draft.num_draft_tokens = {scenario.draft.num_draft_tokens!r}: a tree drafts "
                f"nodes = {tree.nodes} tokens"
            )
        return tree.nodes, []
    if len(candidates) == 1 or scenario.speculation.policy != "fixed":
        return candidates[-1], []
    from specsim.analytic.prediction import predict_deployment

    point = scenario.point
    prediction = predict_deployment(
        deployment, source, law, "", tuple(candidates), point.batch, point.context
    )
    best = int(prediction.best["num_draft_tokens"])
    message = (
        f"K = {best}, the closed form's best at batch {point.batch} and context "
        f"{point.context}; give draft.num_draft_tokens one number to choose it"
    )
    return best, [{"code": "k-chosen", "message": message}]


def policy_of(scenario: Scenario, k: int, law: Law, *, off: bool) -> Policy:
    """The speculation section as a policy."""
    keys = scenario.speculation
    if off:
        return Policy(kind="off")
    low, high = INITIAL_SHARE_RANGE
    initial = float(law.survival(1)[0])
    return Policy(
        kind=keys.policy, num_draft_tokens=k, schedule=keys.schedule or (),
        count_prefills=keys.count_prefills, threshold=keys.threshold,
        candidates=tuple(sorted(set(keys.candidate_steps))), up=keys.up_hysteresis,
        down=keys.down_hysteresis, initial_share=min(max(initial, low), high),
        switch_s=keys.switch_s,
    )  # fmt: skip


def proposed_tokens(
    deployment: Deployment, laws: list[Law], requests: Requests, largest: int
) -> tuple[float, ...] | None:
    """Mean tokens drafted at K = 0..largest where that is fewer than K, over the classes."""
    if deployment.draft.method != "ngram" and not any(law.knows_drafted for law in laws):
        return None
    from specsim.analytic.drafted import drafted_tokens

    ks = np.arange(largest + 1)
    shares = np.bincount(requests.traffic_class, minlength=len(laws)) / len(requests)
    by_class = np.array([drafted_tokens(deployment.draft, law, ks) for law in laws])
    drafted = shares @ by_class
    return None if np.all(drafted >= ks - 1e-9) else tuple(float(d) for d in drafted)


def limits_of(
    scenario: Scenario, deployment: Deployment, requests: Requests, largest_k: int
) -> Limits:
    """The engine section and the memory that is left for the KV cache.

    Raises:
        DoesNotFitError: if no sequence of mean length fits.
    """
    engine = scenario.engine
    context = round(float(requests.prompt_tokens.mean() + requests.output_tokens.mean()))
    room = memory(deployment, largest_k, context)
    if not room.fits and room.kv_pool_bytes > 0:
        raise DoesNotFitError(
            f"no sequence of {context} tokens, the mean, fits: its KV cache needs "
            f"{human_bytes(context * room.kv_bytes_per_token)} per GPU, of which "
            f"{human_bytes(room.kv_pool_bytes)} is left; use shorter prompts or outputs, more "
            "GPUs (hardware.tensor_parallel), or target.kv: fp8"
        )
    if not room.fits:
        raise DoesNotFitError(
            f"{deployment.target.spec.name} does not fit on "
            f"{deployment.target.tensor_parallel} × {deployment.gpu.name}: {room.explain()}; "
            "use more GPUs (hardware.tensor_parallel), smaller weights (target.weights: fp8 or "
            "int4), a smaller draft, or less context"
        )
    unit = requests.prefix_block_tokens if engine.prefix_caching else 0
    try:
        return Limits(
            max_num_seqs=engine.max_num_seqs, max_tokens=engine.max_num_batched_tokens,
            num_blocks=max(1, room.kv_capacity_tokens // engine.block_size),
            block_size=engine.block_size, chunked_prefill=engine.chunked_prefill,
            watermark=engine.watermark, prefix_tokens=unit,
            overlapped=scenario.draft.placement == "overlapped",
        )  # fmt: skip
    except ValueError as error:
        raise ScenarioError(f"engine: {error}") from None


def requests_of(scenario: Scenario, max_requests: int | None) -> tuple[Requests, ArrivalProcess]:
    """The workload section as drawn requests.

    Raises:
        RecordError: for a trace that cannot be read.
        ScenarioError: for lengths from a trace without a trace.
    """
    workload = scenario.workload
    keys = workload.arrivals
    trace: Trace | None = None
    if keys.file is not None:
        trace = read_trace(keys.file).window(keys.start_s, keys.end_s)
    arrivals = ArrivalProcess(
        process=keys.process, rate_per_s=keys.rate_per_s, cv=keys.cv or 1.0,
        concurrency=keys.concurrency or 1, think_time_s=keys.think_time_s,
        max_in_flight=keys.max_in_flight,
    )  # fmt: skip
    count = workload.num_requests
    if max_requests is not None:
        count = min(count, max_requests)
    try:
        requests = generate(
            arrivals=arrivals, classes=_classes(scenario), num_requests=count,
            seed=scenario.seed, trace=trace, rate_scale=keys.rate_scale,
            shared_prefix_tokens=workload.shared_prefix_tokens,
            block_size=scenario.engine.block_size,
        )  # fmt: skip
    except ValueError as error:
        raise ScenarioError(f"workload: {error}") from None
    return requests, arrivals


def _classes(scenario: Scenario) -> tuple[TrafficMix, ...]:
    workload = scenario.workload
    prompt, output = length_law(workload.prompt_tokens), length_law(workload.output_tokens)
    if not workload.classes:
        return (TrafficMix(name="", prompt_tokens=prompt, output_tokens=output),)
    return tuple(
        TrafficMix(
            name=c.name, weight=c.weight,
            prompt_tokens=prompt if c.prompt_tokens is None else length_law(c.prompt_tokens),
            output_tokens=output if c.output_tokens is None else length_law(c.output_tokens),
        )
        for c in workload.classes
    )  # fmt: skip


def length_law(keys: Lengths) -> LengthLaw | None:
    """A length section as a law; None for lengths that come from a trace."""
    if keys.distribution == "trace":
        return None
    given = {
        f.name: value
        for f in dataclasses.fields(LengthLaw)
        if (value := getattr(keys, f.name)) is not None
    }
    return LengthLaw(**given)


def objectives(scenario: Scenario) -> tuple[Objective, ...]:
    """The objective of each traffic class: its own, or the scenario's."""
    classes = scenario.workload.classes
    chosen: list[Slo] = [c.slo or scenario.slo for c in classes] or [scenario.slo]
    return tuple(Objective(**slo.model_dump()) for slo in chosen)
