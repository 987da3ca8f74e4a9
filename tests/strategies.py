"""Hypothesis strategies shared by the tests."""

from __future__ import annotations

from hypothesis import strategies as st

from specsim.acceptance import BetaRequests, Iid, Law, Markov, Mixture, PerPosition, Proposing

probabilities = st.floats(0, 1)
#: Away from the ends, where relative comparisons lose their meaning.
inner_probabilities = st.floats(0.02, 0.98)
draft_tokens = st.integers(0, 12)


def iid_laws() -> st.SearchStrategy[Law]:
    return st.builds(Iid, probabilities)


def per_position_laws() -> st.SearchStrategy[PerPosition]:
    return st.lists(probabilities, min_size=1, max_size=8).map(lambda h: PerPosition(tuple(h)))


def proposing_laws() -> st.SearchStrategy[Law]:
    def build(accepted: PerPosition, weights: list[int]) -> Proposing:
        total = sum(weights)
        return Proposing(accepted, tuple(w / total for w in weights))

    weights = st.lists(st.integers(0, 20), min_size=2, max_size=9).filter(lambda w: sum(w) > 0)
    return st.builds(build, per_position_laws(), weights)


def markov_laws() -> st.SearchStrategy[Law]:
    lengths = st.floats(1, 60)
    return st.builds(Markov, probabilities, probabilities, lengths, lengths)


def beta_laws() -> st.SearchStrategy[Law]:
    return st.builds(BetaRequests, st.floats(0.2, 60), st.floats(0.2, 60))


def simple_laws() -> st.SearchStrategy[Law]:
    return st.one_of(iid_laws(), per_position_laws(), proposing_laws(), markov_laws(), beta_laws())


def laws() -> st.SearchStrategy[Law]:
    def mix(parts: list[Law]) -> Mixture:
        share = 1 / len(parts)
        return Mixture(tuple((share, law) for law in parts))

    return st.one_of(simple_laws(), st.lists(simple_laws(), min_size=1, max_size=3).map(mix))
