"""From one attention and one feed-forward part per layer to groups of equal layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from specsim.catalogue.specs import AttentionSpec, FeedForwardSpec, LayerGroup


def group_layers(
    attention: Sequence[AttentionSpec],
    feed_forward: Sequence[FeedForwardSpec],
    *,
    num_norms: int = 2,
    cross_attention: AttentionSpec | None = None,
) -> tuple[LayerGroup, ...]:
    """Groups of equal layers, in the order of their first layer.

    Layers that alternate end up in two groups: costs do not depend on the order.
    """
    counts = Counter(zip(attention, feed_forward, strict=True))  # keeps insertion order
    return tuple(
        LayerGroup(
            count=count,
            attention=attends,
            feed_forward=feeds,
            num_norms=num_norms,
            cross_attention=cross_attention,
        )
        for (attends, feeds), count in counts.items()
    )
