"""How many tokens a step really drafts, and so verifies, when it is asked for K."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from specsim.acceptance.law import Array, Law
from specsim.deployment import Draft

#: Share of n-gram drafts that are accepted. A prompt look-up proposes only where it finds a
#: match; its published step times grow with accepted tokens as if 47 % of what it drafts
#: were accepted. From GSM8K, batch 128, K = 3 (arXiv 2601.11580: τ = 1.164, speedup 1.047);
#: the same figure is 0.41 to 0.51 on CNN/DailyMail and InstructCoder, which were not used.
NGRAM_ACCEPTANCE_RATE = 0.47


def drafted_tokens(draft: Draft, law: Law, num_draft_tokens: Iterable[int]) -> Array:
    """E[drafted tokens] of a step asked for each K; shape (K,).

    A law that says how often the drafter proposes decides. Where it does not, an n-gram
    drafter is taken to propose as often as its acceptance implies at
    `NGRAM_ACCEPTANCE_RATE`; every other method drafts K tokens.
    """
    ks = np.asarray(list(num_draft_tokens), dtype=float)
    if draft.method != "ngram" or law.knows_drafted:
        return np.array([law.expected_drafted(int(k)) for k in ks], dtype=float)
    accepted = np.array([law.mean(int(k)) for k in ks], dtype=float)
    return np.asarray(np.minimum(ks, accepted / NGRAM_ACCEPTANCE_RATE))
