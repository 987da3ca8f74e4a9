"""Replicas, router and arrivals wired together in one simpy environment."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import cast

import simpy

from specsim.deployment import Deployment
from specsim.errors import RequestTooLongError, ScenarioError
from specsim.simulator import router as routing
from specsim.simulator.batching import blocks_for
from specsim.simulator.ledger import Ledger
from specsim.simulator.replica import Replica, start_over
from specsim.simulator.request import Request
from specsim.simulator.runs import RunSampler
from specsim.simulator.setup import Fault, Setup
from specsim.simulator.step_cost import StepCost
from specsim.simulator.trace_log import StepLog

#: Called with (requests done, requests in all, simulated seconds).
Progress = Callable[[int, int, float], None]


class Cluster:
    """One run: `run()` it once, then read `ledger` and `replicas`."""

    def __init__(
        self, setup: Setup, *, log: StepLog | None = None, force_roster: bool = False
    ) -> None:
        check_feasible(setup)
        self.setup = setup
        self.env = simpy.Environment()
        self.ledger = Ledger(len(setup.requests))
        self.interrupted = False
        self._sampler = RunSampler(setup.laws, setup.seed) if setup.policy.largest else None
        self._router = routing.ROUTERS[setup.router]
        cost = StepCost(setup.deployment, setup.source, setup.limits.max_tokens)
        # replicas that decode come first, those that only prefill after them
        split = setup.prefill_replicas > 0
        self.replicas = [
            Replica(
                index=i, env=self.env, limits=setup.limits, policy=setup.policy, cost=cost,
                on_finish=self._finished, log=log, force_roster=force_roster,
                proposed=setup.proposed,
                on_prefilled=self._prefilled if split and i >= setup.replicas else None,
            )
            for i in range(setup.replicas + setup.prefill_replicas)
        ]  # fmt: skip
        self._decoders = self.replicas[: setup.replicas]
        self._entrances = self.replicas[setup.replicas :] if split else self.replicas
        self._done = self.env.event()
        self._next = 0  # the next request of a closed loop
        self._left = len(setup.requests)
        self._slot: simpy.Event | None = None  # a load generator waits for one to be done
        self._progress: Progress | None = None
        self._stranded: list[Request] = []  # arrived while every replica was down
        self._down = [0] * len(self.replicas)  # faults that hold each replica down

    def run(self, *, max_seconds: float | None = None, progress: Progress | None = None) -> None:
        """Serve everything; stop at `max_seconds` of simulated time, or at Ctrl-C."""
        env, setup = self.env, self.setup
        self._progress = progress
        for replica in self.replicas:
            replica.process = env.process(replica.run())
        for fault in setup.faults:
            env.process(self._fault(fault))
        if setup.arrivals.process == "closed":
            for _ in range(min(setup.arrivals.concurrency, len(setup.requests))):
                self._submit_next()
        else:
            env.process(self._arrive())
        until: simpy.Event = self._done
        if max_seconds is not None:
            until = self._done | env.timeout(max_seconds)
        try:
            env.run(until=until)
        except KeyboardInterrupt:
            self.interrupted = True

    def _arrive(self) -> Generator[simpy.Event, None, None]:
        env, most = self.env, self.setup.arrivals.max_in_flight
        total = len(self.setup.requests)
        for number, time in enumerate(self.setup.requests.arrival_s.tolist()):
            if time > env.now:
                yield env.timeout(time - env.now)
            while most is not None and number - (total - self._left) >= most:
                self._slot = env.event()
                yield self._slot
            self._route(self._request(number))

    def _request(self, number: int) -> Request:
        """A request object from the columns, with its accepted runs."""
        columns = self.setup.requests
        tokens = int(columns.output_tokens[number])
        traffic = int(columns.traffic_class[number])
        request = Request(
            number, self.env.now, int(columns.prompt_tokens[number]), tokens, traffic,
            () if columns.prefixes is None else columns.prefixes[number],
        )  # fmt: skip
        if self._sampler is not None:
            request.runs = self._sampler.runs(number, traffic, tokens)
        return request

    def _route(self, request: Request) -> None:
        if len(self._entrances) > 1 or self.setup.faults:
            chosen = self._choose(self._entrances, request)
            if chosen is None:
                self._stranded.append(request)
            else:
                chosen.submit(request)
        else:
            self._entrances[0].submit(request)

    def _choose(self, replicas: list[Replica], request: Request) -> Replica | None:
        """The router's choice among those that are up; None if none is."""
        alive = [replica for replica in replicas if replica.alive]
        if not alive:
            return None
        found = self._router(cast(list[routing.Replica], alive), request.id, request.prefix)
        return self.replicas[found]

    def _prefilled(self, request: Request, now: float) -> None:
        self.env.process(self._transfer(request))

    def _transfer(self, request: Request) -> Generator[simpy.Event, None, None]:
        """Send a prompt's KV cache from where it was computed to where it is used."""
        moved = kv_bytes_per_token(self.setup.deployment) * request.context
        yield self.env.timeout(moved / self.setup.kv_link_bytes_per_s)
        chosen = self._choose(self._decoders, request)
        if chosen is None:
            start_over(request)
            self._stranded.append(request)
        else:
            chosen.submit_computed(request)

    def _submit_next(self) -> None:
        if self._next < len(self.setup.requests):
            number, self._next = self._next, self._next + 1
            self._route(self._request(number))

    def _think(self) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(self.setup.arrivals.think_time_s)
        self._submit_next()

    def _finished(self, request: Request, now: float) -> None:
        self.ledger.finish(request, now)
        self._one_less(now)

    def _one_less(self, now: float) -> None:
        self._left -= 1
        if self._slot is not None:
            slot, self._slot = self._slot, None
            slot.succeed()
        if self.setup.arrivals.process == "closed":
            if self.setup.arrivals.think_time_s:
                self.env.process(self._think())
            else:
                self._submit_next()
        if self._left == 0:
            self._done.succeed()
        elif self._progress is not None and self._left % 256 == 0:
            total = len(self.setup.requests)
            self._progress(total - self._left, total, now)

    def _fault(self, fault: Fault) -> Generator[simpy.Event, None, None]:
        """Stop a replica, hand on what it held, and start it again."""
        replica = self.replicas[fault.replica]
        yield self.env.timeout(fault.stop_s)
        self._down[fault.replica] += 1
        for request in replica.stop():
            if fault.recompute:
                self._route(request)
            else:
                self.ledger.fail(request, self.env.now)
                self._one_less(self.env.now)
        yield self.env.timeout(fault.restart_s - fault.stop_s)
        self._down[fault.replica] -= 1
        if self._down[fault.replica]:  # another fault lasts longer
            return
        replica.restart()
        waiting, self._stranded = self._stranded, []
        for request in waiting:
            self._route(request)


def kv_bytes_per_token(deployment: Deployment) -> float:
    """What the busiest GPU sends of a prompt's KV cache, per token: the target's part, and
    the drafter's where it computed the prompt too (on GPUs of its own at the same time)."""
    target, draft = deployment.target.kv_bytes_per_token_per_gpu, deployment.draft
    if not draft.reads_prompts:
        return target
    assert draft.model is not None
    drafter = draft.model.kv_bytes_per_token_per_gpu
    return max(target, drafter) if draft.own_gpus else target + drafter


def check_feasible(setup: Setup) -> None:
    """Every request can be served alone.

    Raises:
        ScenarioError: naming the request and the limit that it breaks;
            `RequestTooLongError` where that is the KV cache.
    """
    limits, requests, k = setup.limits, setup.requests, setup.policy.largest
    if not len(requests):
        raise ScenarioError("workload: no requests")
    if k + 1 > limits.max_tokens:
        raise ScenarioError(
            f"K = {k}: one sequence needs {k + 1} tokens a step, more than "
            f"engine.max_num_batched_tokens = {limits.max_tokens}"
        )
    whole = requests.prompt_tokens + requests.output_tokens
    worst = int(whole.argmax())
    needed = blocks_for(int(whole[worst]) + k, limits.block_size)
    if needed > limits.num_blocks:
        room = limits.num_blocks * limits.block_size
        raise RequestTooLongError(
            f"request {worst}: {requests.prompt_tokens[worst]} prompt and "
            f"{requests.output_tokens[worst]} output tokens do not fit the KV cache of "
            f"{room} tokens; shorten it (maximum), or use more GPUs or smaller weights"
        )
    longest = int(requests.prompt_tokens.max())
    if not limits.chunked_prefill and longest > limits.max_tokens:
        raise ScenarioError(
            f"a prompt of {longest} tokens exceeds engine.max_num_batched_tokens = "
            f"{limits.max_tokens}, and chunked prefill is off"
        )
    for fault in setup.faults:
        count = setup.replicas + setup.prefill_replicas
        if fault.replica >= count:
            raise ScenarioError(f"fault: replica {fault.replica} of {count}")
