"""A real speculative decoder, small enough to read, proved to keep the target's distribution.

Read in this order: `sampling` (logits to probabilities, and where randomness comes
from), `verify` (the accept rules), `decode` (the draft, verify, accept step), then
`model`, `cache` and `draft` for what feeds them. `exact` enumerates every random outcome
of that same code, which is how the tests prove it.
"""
