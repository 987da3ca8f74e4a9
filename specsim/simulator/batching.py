"""Which prompts get how many tokens of a step: plain functions of the replica's state."""

from __future__ import annotations


def chunk_tokens(left: int, budget: int, chunked: bool) -> int:
    """Prompt tokens to compute now, of `left` that a request still needs.

    With chunked prefill as many as the step's token budget has room for; without, the
    whole prompt or nothing (vLLM v1 with chunked prefill off).
    """
    if left <= budget:
        return left
    return budget if chunked else 0


def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that hold `tokens` tokens."""
    return -(-tokens // block_size)


def max_running(max_num_seqs: int, max_tokens: int, num_draft_tokens: int) -> int:
    """Sequences that may run at once: every one takes K + 1 tokens of each step's budget."""
    return max(1, min(max_num_seqs, max_tokens // (num_draft_tokens + 1)))


def may_admit(needed: int, free: int, watermark: int, nothing_runs: bool) -> bool:
    """Whether `needed` blocks may go to a new request: some stay free for those that run,
    unless nothing runs that could need them."""
    return needed <= free - (0 if nothing_runs else watermark)


def cached_units(matched: int, unit_tokens: int, prompt_tokens: int) -> int:
    """Cached prefix units that a prompt can skip: the last token is always computed."""
    if unit_tokens == 0:
        return 0
    return min(matched, (prompt_tokens - 1) // unit_tokens)
