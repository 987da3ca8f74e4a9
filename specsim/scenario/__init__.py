"""One frozen description of a run: sections, the document, and what its names resolve to."""

from specsim.scenario.document import Scenario
from specsim.scenario.sections import draft_token_range

__all__ = ["Scenario", "draft_token_range"]
