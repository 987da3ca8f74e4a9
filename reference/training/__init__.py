"""Drafts trained on the target's own output: data, training, evaluation, cards."""
