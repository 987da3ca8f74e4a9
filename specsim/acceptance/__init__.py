"""How many drafted tokens survive: laws for chains and trees, and conversions."""

from specsim.acceptance.calibrated import Calibrated
from specsim.acceptance.chains import Iid, PerPosition, Proposing
from specsim.acceptance.conversions import (
    FIGURES,
    acceptance_length_from_alpha,
    alpha_from_acceptance_length,
    alpha_from_draft_acceptance_rate,
    conditional_from_survival,
    law_from_figure,
    survival_from_conditional,
)
from specsim.acceptance.correlated import BetaRequests, Markov, Mixture
from specsim.acceptance.empirical import Empirical, load_runs
from specsim.acceptance.hidden import HiddenChain
from specsim.acceptance.law import MAX_RUN, Law, replay
from specsim.acceptance.trees import (
    TreeShape,
    best_tree,
    rank_acceptance,
    tree_acceptance_length,
    tree_law,
    tree_survival,
)

__all__ = [
    "FIGURES",
    "MAX_RUN",
    "BetaRequests",
    "Calibrated",
    "Empirical",
    "HiddenChain",
    "Iid",
    "Law",
    "Markov",
    "Mixture",
    "PerPosition",
    "Proposing",
    "TreeShape",
    "acceptance_length_from_alpha",
    "alpha_from_acceptance_length",
    "alpha_from_draft_acceptance_rate",
    "best_tree",
    "conditional_from_survival",
    "law_from_figure",
    "load_runs",
    "rank_acceptance",
    "replay",
    "survival_from_conditional",
    "tree_acceptance_length",
    "tree_law",
    "tree_survival",
]
