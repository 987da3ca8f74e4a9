"""`python -m validation.measure_peers`: asks AIConfigurator what `validation.peers` compares.

Needs the wheel `aiconfigurator-core` (the extra `kernels`); writes `data/peers.json`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import specsim as ss
from validation.peers import PATH, SYSTEMS, THEIR_MODELS, Question, questions

TOOL = "aiconfigurator-core"
#: What their reader of configurations wants to see of a model that they do not ship.
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 36,
    "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


class Peer:
    """Their compiled engines, one for each deployment and draft length."""

    def __init__(self, folder: Path) -> None:
        self._engines: dict[tuple[Any, ...], Any] = {}
        self._folder = folder

    def milliseconds(self, asked: Question) -> float | None:
        """One decode step; None where they raise, with the reason on stderr."""
        try:
            return round(self._step(asked), 4)
        except Exception as problem:
            print(f"{asked.key}: {type(problem).__name__}: {problem}"[:300], file=sys.stderr)
            return None

    def _step(self, asked: Question) -> float:
        from aiconfigurator_core.sdk.engine import EngineHandle

        key = (asked.model, asked.gpu, asked.engine, asked.tensor_parallel, asked.num_draft_tokens)
        if key not in self._engines:
            experts = bool(ss.model(asked.model).num_active_parameters
                           < ss.model(asked.model).num_parameters)  # fmt: skip
            self._engines[key] = EngineHandle.compile(
                self._model(asked.model), SYSTEMS[asked.gpu], asked.engine,
                tp_size=asked.tensor_parallel, nextn=asked.num_draft_tokens,
                moe_tp_size=asked.tensor_parallel if experts else None,
            )  # fmt: skip
        # a sequence in the middle of its answer: they take isl + osl // 2 + 1 as its length
        return float(self._engines[key].decode_step_latency(asked.batch, asked.context, 2))

    def _model(self, name: str) -> str:
        if name != "qwen3-4b":
            return THEIR_MODELS[name]
        (self._folder / "config.json").write_text(json.dumps(QWEN3_4B), encoding="utf-8")
        return str(self._folder)


def main(arguments: list[str] | None = None) -> int:
    """Ask; see the module."""
    parser = argparse.ArgumentParser(prog="python -m validation.measure_peers", description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(Path(folder))
        answers = {asked.key: peer.milliseconds(asked) for asked in questions()}
    document = {
        "schema_version": 1, "tool": TOOL, "version": importlib.metadata.version(TOOL),
        "command": "python -m validation.measure_peers", "date": datetime.date.today().isoformat(),
        "milliseconds": answers,
    }  # fmt: skip
    options.out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{len(answers)} steps, {sum(v is None for v in answers.values())} without an answer",
          file=sys.stderr)  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
