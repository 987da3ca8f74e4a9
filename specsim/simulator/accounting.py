"""Where the time, the memory and the money of a run went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from specsim.cost.drafting import num_draft_passes
from specsim.cost.operations import operations
from specsim.cost.step import padded_tokens
from specsim.cost.work import Work
from specsim.deployment import PlacedModel
from specsim.metrics import ServiceMetrics

if TYPE_CHECKING:
    from specsim.simulator.cluster import Cluster

#: Backlog at the last arrival, as a share of all requests, that counts as overload.
OVERLOAD_SHARE = 0.1


def totals(cluster: Cluster, service: ServiceMetrics) -> dict[str, Any]:
    """Everything of `result.Summary` that is not a service metric."""
    replicas = cluster.replicas
    steps = sum(r.batch.steps for r in replicas)
    accepted = sum(r.batch.accepted for r in replicas)
    num_steps = sum(len(r.step_end_s) for r in replicas)
    busy = sum(
        r.timer.draft_s + r.timer.verify_s + r.timer.prefill_s + r.timer.host_s for r in replicas
    )
    blocks = cluster.setup.limits.num_blocks
    prompts = sum(r.timer.prefill_tokens + r.prompts.cached_tokens for r in replicas)
    cached = sum(r.prompts.cached_tokens for r in replicas)
    return {
        "acceptance_length": 1 + accepted / steps if steps else None,
        "acceptance_histogram": histogram(cluster, steps),
        "num_steps": num_steps,
        "mean_batch": steps / num_steps if num_steps else None,
        "preemptions": sum(r.preemptions for r in replicas),
        "utilisation": utilisation(cluster),
        "bound": bound_shares(cluster),
        "kv_occupancy": sum(r.occupancy_s for r in replicas) / (blocks * busy) if busy else None,
        "prefix_hit_rate": cached / prompts if prompts else None,
        "wasted": wasted(cluster),
        "cost_usd_per_million_tokens": price(cluster, service),
        "energy_j_per_token": energy(cluster, service),
    }


def histogram(cluster: Cluster, steps: int) -> tuple[int, ...]:
    """Sequence-steps in which 0, 1, … K drafted tokens were accepted, of finished
    requests. A last step counts what was verified, not what was delivered."""
    largest = cluster.setup.policy.largest
    if largest == 0:
        return (steps,)
    emitted = np.frombuffer(cluster.ledger.plans, dtype=np.uint8)
    return tuple(int(n) for n in np.bincount(emitted, minlength=largest + 2)[1:])


def utilisation(cluster: Cluster) -> dict[str, float]:
    """Shares of the replicas' time, from the start to the last event; they sum to 1."""
    replicas = cluster.replicas
    spent = {
        "draft": sum(r.timer.draft_s for r in replicas),
        "verify": sum(r.timer.verify_s for r in replicas),
        "prefill": sum(r.timer.prefill_s for r in replicas),
        "host": sum(r.timer.host_s for r in replicas),
    }
    busy = sum(spent.values())
    whole = max(cluster.env.now * len(replicas), busy)
    if whole == 0:
        return {**spent, "idle": 1.0}
    return {**{k: v / whole for k, v in spent.items()}, "idle": (whole - busy) / whole}


def bound_shares(cluster: Cluster) -> dict[str, float]:
    """What binds the target's passes and the steps around them, as shares of busy time:
    memory, compute, latency (launches, links, fixed times), draft and host. The passes'
    split is that of every n-th step."""
    setup = cluster.setup
    samples = [s for r in cluster.replicas for s in r.timer.samples]
    replicas = cluster.replicas
    passes = sum(r.timer.verify_s + r.timer.prefill_s for r in replicas)
    draft, host = sum(r.timer.draft_s for r in replicas), sum(r.timer.host_s for r in replicas)
    busy = passes + draft + host
    if not samples or busy == 0:
        return {}
    tokens, sequences, rows, kv, pairs = np.asarray(samples, dtype=float).T
    time = setup.source.work_time(
        setup.deployment.target,
        Work(tokens=padded_tokens(setup.deployment.runtime, tokens), sequences=sequences,
             logit_rows=rows, kv_tokens=kv, pairs=pairs),
    )  # fmt: skip
    whole = float(np.sum(time.seconds))
    shares = {
        name: float(np.sum(np.broadcast_to(part, tokens.shape))) / whole * passes / busy
        for name, part in (
            ("memory", time.memory_s), ("compute", time.compute_s), ("latency", time.latency_s),
        )
    }  # fmt: skip
    return {**shares, "draft": draft / busy, "host": host / busy}


def wasted(cluster: Cluster) -> dict[str, float]:
    """Work for drafted tokens that were rejected, estimated at the run's mean step: of
    the draft rounds the rejected share of drafted tokens, of the verify passes the
    rejected share of verified ones. What an overlapped drafter throws away comes on top
    (seconds only)."""
    setup, replicas = cluster.setup, cluster.replicas
    drafted = sum(r.timer.drafted for r in replicas)
    steps = sum(r.batch.steps for r in replicas)
    rejected = drafted - sum(r.batch.accepted for r in replicas)
    result = {"flops": 0.0, "bytes": 0.0, "seconds": 0.0, "tokens": float(max(rejected, 0))}
    if not drafted or not steps:
        return result
    of_draft, of_verify = rejected / drafted, rejected / (drafted + steps)
    draft_s, verify_s = (
        sum(r.timer.draft_s for r in replicas),
        sum(r.timer.verify_s for r in replicas),
    )
    result["seconds"] = (
        draft_s * of_draft + verify_s * of_verify + sum(r.timer.overlap_wasted_s for r in replicas)
    )
    rounds = sum(len(r.step_end_s) for r in replicas)
    batch = max(1.0, steps / rounds)
    k = max(1, round(drafted / steps))
    requests = setup.requests
    context = float(requests.prompt_tokens.mean() + requests.output_tokens.mean() / 2)
    deployment = setup.deployment
    verify = flops_and_bytes(deployment.target, batch, k + 1, context)
    draft = (0.0, 0.0)
    if deployment.draft.model is not None:
        one = flops_and_bytes(deployment.draft.model, batch, 1, context)
        passes = num_draft_passes(deployment.draft, k)
        draft = (one[0] * passes, one[1] * passes)
    for name, of_one_draft, of_one_verify in zip(("flops", "bytes"), draft, verify, strict=True):
        result[name] = rounds * (of_one_draft * of_draft + of_one_verify * of_verify)
    return result


def flops_and_bytes(
    model: PlacedModel, batch: float, new_tokens: int, context: float
) -> tuple[float, float]:
    """FLOPs and bytes of one pass, over all GPUs of the model."""
    found = operations(model, Work.uniform(batch, new_tokens, context))
    degree = model.tensor_parallel
    flops = sum(float(op.flops) * op.count for op in found)
    moved = sum(float(op.num_bytes) * op.count for op in found if op.kind != "allreduce")
    return flops * degree, moved * degree


def price(cluster: Cluster, service: ServiceMetrics) -> tuple[float, float] | None:
    """US dollars per million output tokens at the low and high end of the GPU's rent."""
    deployment = cluster.setup.deployment
    rent = deployment.gpu.price_usd_per_h
    if rent is None or not service.output_tokens:
        return None
    gpus = deployment.num_gpus * len(cluster.replicas)
    hours = service.duration_s / 3600 * gpus
    low, high = (hours * usd / service.output_tokens * 1e6 for usd in rent)
    return low, high


def energy(cluster: Cluster, service: ServiceMetrics) -> float | None:
    """Joules per output token if every GPU drew its rated power all the time (an upper
    limit: memory-bound decoding draws less)."""
    deployment = cluster.setup.deployment
    power = deployment.gpu.power_w
    if power is None or not service.output_tokens:
        return None
    gpus = deployment.num_gpus * len(cluster.replicas)
    return power * gpus * service.duration_s / service.output_tokens


def warnings(cluster: Cluster, service: ServiceMetrics) -> list[dict[str, str]]:
    """Overload, preemption, and a run that ended early."""
    found: list[dict[str, str]] = []
    ledger = cluster.ledger
    arrivals = cluster.setup.requests.arrival_s
    if cluster.setup.arrivals.process != "closed" and len(arrivals) >= 100:
        last = float(arrivals[-1])
        backlog = int(np.sum(~(ledger.finish_s <= last) & (arrivals <= last)))
        room = cluster.setup.limits.max_num_seqs * cluster.setup.replicas
        half = float(arrivals[len(arrivals) // 2])
        earlier = int(np.sum(~(ledger.finish_s <= half) & (arrivals <= half)))
        if backlog > max(OVERLOAD_SHARE * len(arrivals), room) and backlog > 1.5 * earlier:
            offered = len(arrivals) / max(last - float(arrivals[0]), 1e-12)
            found.append({
                "code": "overloaded",
                "message": f"requests arrive at {offered:.3g}/s but are served at "
                f"{service.throughput_requests_per_s:.3g}/s: {backlog} are still in the system "
                "when the last one arrives, and latencies grow with the length of the run",
            })  # fmt: skip
    preemptions = sum(r.preemptions for r in cluster.replicas)
    if preemptions > 0.05 * max(service.completed, 1):
        found.append({
            "code": "preemptions",
            "message": f"{preemptions} preemptions: the KV cache is too small for this batch; "
            "lower engine.max_num_seqs or add memory",
        })  # fmt: skip
    left = service.requests - service.completed - service.failed
    if left:
        found.append({
            "code": "incomplete",
            "message": f"{left} of {service.requests} requests were not finished when the run "
            "ended; numbers are of those that were",
        })  # fmt: skip
    return found
