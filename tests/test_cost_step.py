"""Draft rounds, whole steps and memory, from known per-pass times."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import specsim as ss
from specsim.catalogue.specs import Estimate, RuntimeSpec
from specsim.cost.drafting import draft_round, num_draft_passes
from specsim.cost.memory import CONTEXT_BYTES, memory
from specsim.cost.operations import Work
from specsim.cost.roofline import Roofline
from specsim.cost.source import ForwardTime, latency
from specsim.cost.step import decode_step, overhead, padded_tokens, prefill_seconds, target_pass
from specsim.deployment import Deployment, Draft, PlacedModel, Tree, make_draft


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A cost source that writes down what it is asked and charges by formula: 100 for the
    target, 1 for a draft, plus a millionth of the tokens and of the keys."""

    asked: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    name: str = "ledger"

    def forward_time(self, model: PlacedModel, batch: Any, new: Any, context: Any) -> ForwardTime:
        return self.work_time(model, Work.uniform(batch, new, context))

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        self.asked.append(
            (model.spec.name, float(np.max(work.tokens)), float(np.max(work.kv_tokens)))
        )
        base = 100.0 if model.spec.name == "llama-3.1-70b" else 1.0
        return latency(base + 1e-6 * np.asarray(work.tokens) + 1e-6 * np.asarray(work.kv_tokens))


def constant(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, source="test")


def runtime(**values: float) -> RuntimeSpec:
    base = ss.runtime("ideal")
    changes: dict[str, Any] = {name: constant(v) for name, v in values.items()}
    return dataclasses.replace(base, **changes)


def deployment(draft: dict[str, Any] | Draft | None = None, **changes: Any) -> Deployment:
    target = PlacedModel(spec=ss.model("llama-3.1-70b"), tensor_parallel=4)
    if isinstance(draft, Draft):
        made = draft
    else:
        made = make_draft(target, **(draft or {"model": ss.model("llama-3.2-1b")}))
    base = Deployment(
        target=target, draft=made, gpu=ss.gpu("h100-sxm"), runtime=ss.runtime("ideal")
    )
    return dataclasses.replace(base, **changes)


class TestDraftRound:
    """Which passes a round makes, and with how many tokens."""

    def passes(self, draft: dict[str, Any], k: int, batch: int = 1, context: int = 100) -> list:
        source = Ledger()
        draft_round(deployment(draft), source, k, batch, context)
        return source.asked

    def test_draft_model_is_k_sequential_passes_the_first_of_two_tokens(self) -> None:
        source = Ledger()
        k, context = 4, 100
        time = draft_round(deployment(), source, k, 1, context).seconds
        expected = 1 + 2e-6 + 1e-6 * (context + 2)
        for i in range(1, k):
            expected += 1 + 1e-6 + 1e-6 * (context + 2 + i)
        assert float(time) == pytest.approx(expected, rel=1e-12)

    def test_eagle_extends_over_what_was_verified(self) -> None:
        first, later = self.passes({"method": "eagle"}, 3)
        assert first[1] == 4  # K + 1 positions
        assert later[1] == 1

    def test_block_is_one_pass(self) -> None:
        head = ss.model("dflash-qwen3-8b")
        target = PlacedModel(spec=ss.model("qwen3-8b"))
        source = Ledger()
        made = deployment(target=target, draft=make_draft(target, model=head))
        draft_round(made, source, 8, 2, 100)
        assert [a[1] for a in source.asked] == [2 * 9]

    def test_a_target_that_drafts_for_itself_costs_a_plain_steps_work_per_sequence(self) -> None:
        batch, k = np.array([1.0, 50.0]), 3
        for draft, passes in (({"method": "sparse-kv", "kv_budget": 512}, k),
                              ({"model": ss.model("llama-3.2-1b")}, 0)):  # fmt: skip
            bare, busy = (
                draft_round(deployment(draft, runtime=runtime(sequence_s=each)), Ledger(), k,
                            batch, 4000).seconds
                for each in (0.0, 2e-5)
            )  # fmt: skip
            np.testing.assert_allclose(busy - bare, passes * 2e-5 * batch, atol=1e-12)

    def test_ngram_runs_no_model(self) -> None:
        made = deployment({"method": "ngram"}, runtime=runtime(ngram_s=1e-5))
        source = Ledger()
        time = draft_round(made, source, 4, np.array([1, 10]), 100)
        np.testing.assert_allclose(time.seconds, [1e-5, 1e-4])
        assert source.asked == []

    def test_sparse_kv_drafts_with_the_target_over_its_budget(self) -> None:
        asked = self.passes({"method": "sparse-kv", "kv_budget": 512}, 3, context=16_000)
        assert {name for name, _, _ in asked} == {"llama-3.1-70b"}
        assert max(keys for _, _, keys in asked) <= 513

    def test_early_exit_runs_the_first_layers(self) -> None:
        asked = self.passes({"method": "early-exit", "exit_layer": 8}, 2)
        assert asked[0][0] == "llama-3.1-70b[:8]"

    def test_tree_drafts_by_depth(self) -> None:
        draft = {"method": "eagle", "tree": Tree(steps=5, topk=4, nodes=16)}
        first, later = self.passes(draft, 16)
        assert (first[1], later[1]) == (6, 4)
        assert num_draft_passes(deployment(draft).draft, 16) == 5

    @pytest.mark.parametrize("method", ["eagle", "eagle3", "medusa"])
    @given(k=st.integers(1, 8))
    def test_longer_rounds_take_longer(self, method: str, k: int) -> None:
        made = deployment({"method": method})
        source = Roofline(gpu=made.gpu)
        times = [draft_round(made, source, n, 4, 512).seconds for n in (k, k + 1)]
        assert times[1] > times[0]

    def test_launches_outside_a_graph_are_waited_for(self) -> None:
        made = deployment(runtime=runtime(draft_layer_s=1.0))
        time = draft_round(made, Ledger(), 1, 1, 0)
        assert float(time.seconds) == pytest.approx(16.0)  # 16 layers, GPU work hidden


class TestStep:
    def test_adds_its_parts(self) -> None:
        host = runtime(step_s=1e-3, sequence_s=1e-4, token_s=1e-5, draft_step_s=5e-4)
        made = deployment(runtime=host)
        source = Ledger()
        step = decode_step(made, source, 3, 8, 100)
        assert float(step.overhead_s) == pytest.approx(1e-3 + 8e-4 + 24e-5 + 5e-4)
        draft = draft_round(made, source, 3, 8, 100).seconds
        verify = target_pass(made, source, 8, 4, 100).seconds
        assert float(step.seconds) == pytest.approx(float(draft + verify + step.overhead_s))

    def test_k_zero_is_plain_decoding(self) -> None:
        made = deployment(runtime=runtime(step_s=1e-3, draft_step_s=7.0))
        plain = decode_step(made.without_draft(), Ledger(), 0, 2, 50)
        zero = decode_step(made, Ledger(), 0, 2, 50)
        assert float(zero.seconds) == float(plain.seconds)
        assert float(overhead(made.runtime, 0, 2)) == 1e-3

    def test_graph_padding_is_a_staircase(self) -> None:
        vllm = ss.runtime("vllm")
        padded = padded_tokens(vllm, [1, 3, 5, 9, 250, 512, 513, 1000])
        np.testing.assert_array_equal(padded, [1, 4, 8, 16, 256, 512, 513, 1000])

    def test_passes_beyond_the_largest_graph_wait_for_launches(self) -> None:
        graphs = dataclasses.replace(runtime(layer_s=10.0), graph_sizes=(1, 2, 4))
        made = deployment(runtime=graphs)
        small = target_pass(made, Ledger(), 4, 1, 0).seconds
        large = target_pass(made, Ledger(), 5, 1, 0).seconds
        assert float(small) < 101
        assert float(large) == pytest.approx(800.0)  # 80 layers

    def test_prefill_of_a_draft_adds_to_the_first_token(self) -> None:
        made = deployment()
        source = Ledger()
        with_draft = float(prefill_seconds(made, source, 1000))
        without = float(prefill_seconds(made.without_draft(), source, 1000))
        assert with_draft - without == pytest.approx(1 + 1e-3 + 1e-3)

    def test_prompt_tokens_cost_the_engine_too(self) -> None:
        made = deployment().without_draft()
        slow = dataclasses.replace(made, runtime=runtime(prompt_token_s=5e-3, step_s=0.25))
        plain, more = (float(prefill_seconds(d, Ledger(), 1000)) for d in (made, slow))
        assert more - plain == pytest.approx(5 + 0.25)

    @pytest.mark.parametrize(("k", "batch", "context"), [(-1, 1, 1), (1, 0, 1), (1, 1, -1)])
    def test_refused(self, k: int, batch: int, context: int) -> None:
        with pytest.raises(ValueError, match=r"< [01]"):
            decode_step(deployment(), Ledger(), k, batch, context)


class TestMemory:
    def test_by_hand(self) -> None:
        """70B and 1B in bf16 on four H100; 256 sequences, K = 4."""
        made = deployment()
        m = memory(made, 4, 1024)
        target = 70_553_706_496 * 2 / 4
        draft = 1_235_814_400 * 2 / 4
        assert m.target_weights_bytes == target
        assert m.draft_weights_bytes == draft
        assert m.logits_bytes == 256 * 5 * 128_256 * 4
        # 80 layers × 2 × 8 KV heads × 128 × 2 bytes, over 4 GPUs; draft: 16 × 2 × 8 × 64 × 2
        assert m.kv_bytes_per_token == (327_680 + 32_768) / 4
        used = target + draft + m.logits_bytes + m.activation_bytes + m.graph_bytes + CONTEXT_BYTES
        pool = 80 * 2**30 * 0.9 - used
        slots = -(-(1024 + 5) // 16) * 16
        assert m.max_concurrency == int(pool // (slots * m.kv_bytes_per_token))

    def test_what_speculation_costs(self) -> None:
        made = deployment()
        without = memory(made.without_draft(), 0, 1024)
        assert memory(made, 4, 1024).max_concurrency < without.max_concurrency
        own = deployment({"model": ss.model("llama-3.2-1b"), "own_gpus": True})
        assert memory(own, 4, 1024).draft_weights_bytes == 0
        assert own.num_gpus == 8

    def test_too_large(self) -> None:
        target = PlacedModel(spec=ss.model("llama-3.1-70b"))
        made = deployment(target=target, draft=Draft(method="ngram"))
        m = memory(made, 3, 1024)
        assert not m.fits
        assert m.max_concurrency == 0
        assert "144.31 GB" in m.explain()

    @pytest.mark.parametrize("name", ["gpt-oss-20b", "deepseek-v3", "qwen3.5-27b", "llama-3.1-8b"])
    def test_longer_contexts_hold_fewer_sequences(self, name: str) -> None:
        tp = 16 if name == "deepseek-v3" else 1
        weights = "fp8" if name == "deepseek-v3" else "bf16"
        target = PlacedModel(spec=ss.model(name), tensor_parallel=tp, weights=weights)
        made = deployment(target=target, draft=Draft(method="ngram"))
        counts = [memory(made, 3, c).max_concurrency for c in (256, 4096, 32_768)]
        assert counts[0] >= counts[1] >= counts[2]
        assert counts[0] > 0

    def test_kv_heads_are_replicated_beyond_their_number(self) -> None:
        spec = ss.model("llama-3.1-70b")  # 8 KV heads
        per_gpu = [PlacedModel(spec=spec, tensor_parallel=tp).kv_bytes_per_token_per_gpu
                   for tp in (8, 16)]  # fmt: skip
        assert per_gpu[0] == per_gpu[1]

    def test_sliding_windows_bound_the_cache(self) -> None:
        """gpt-oss keeps 128 tokens in half of its layers."""
        target = PlacedModel(spec=ss.model("gpt-oss-20b"))
        made = deployment(target=target, draft=Draft(method="ngram"))
        full = ss.model("gpt-oss-20b").kv_bytes_per_token("bf16") * 32_768
        m = memory(made, 0, 32_768)
        assert m.kv_pool_bytes / m.max_concurrency < 0.55 * full

    def test_lookahead_slots_count_beside_sliding_windows(self) -> None:
        """At context 1000, 64 drafted tokens need as many more slots (whole blocks) in the layers
        without a window, as in a model without any."""
        spec = ss.model("gpt-oss-20b")
        made = deployment(target=PlacedModel(spec=spec), draft=Draft(method="ngram"))
        few, many = (memory(made, k, 1000) for k in (0, 64))
        block = made.block_size
        full = sum(g.count for g in spec.layers if g.attention.window is None)
        bounded = sum(g.count for g in spec.layers if g.attention.window is not None)
        for m, slots in ((few, -(-1001 // block) * block), (many, -(-1065 // block) * block)):
            # 8 KV heads of 64, keys and values, 2 bytes
            per_sequence = (full * slots + bounded * (128 + block)) * 8 * 64 * 2 * 2
            assert m.max_concurrency == m.kv_pool_bytes // per_sequence
