"""Published measurements as cases: each row of `data/published.csv` as a deployment.

The table gives target, draft, hardware and engine as its sources print them; here they
become catalogue names. What a source does not say is assumed in one place, `ASSUMED`, and a
row that cannot be mapped is listed with the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import specsim as ss
from specsim.cost.experts import TYPICAL
from specsim.deployment import Deployment, PlacedModel, Tree, make_draft

PATH = Path(__file__).parent / "data" / "published.csv"

MODELS = {
    "Llama-3.1-8B-Instruct": "llama-3.1-8b", "LLaMA-Instruct 3.1 8B": "llama-3.1-8b",
    "Qwen3-4B": "qwen3-4b", "LLaMA2-Chat 7B": "llama-2-7b", "LLaMA2-Chat 13B": "llama-2-13b",
    "Vicuna-7B v1.3": "vicuna-7b", "Vicuna-7B-v1.3": "vicuna-7b", "Vicuna-13B v1.3": "vicuna-13b",
    "Vicuna-13B-v1.3": "vicuna-13b", "Vicuna-33B v1.3": "vicuna-33b", "Llama2-7B": "llama-2-7b",
    "Kimi-K2.5 (MoE, MXFP4)": "kimi-k2.5", "Kimi-K2.6-NVFP4 (MoE)": "kimi-k2.6",
}  # fmt: skip
GPUS = {
    "B200": "b200", "H200": "h200", "H100 80GB": "h100", "H100": "h100", "RTX 3090": "rtx3090",
    "RTX 3090 24GB": "rtx3090", "A100 80GB": "a100-sxm-80gb", "A100-PCIe 80GB": "a100-pcie-80gb",
    "MI355X": "mi355x", "GB200": "gb200",
}  # fmt: skip
#: Engine as printed → (runtime, whether the stack's constants are known: vLLM, SGLang).
RUNTIMES: Mapping[str, tuple[str, bool]] = {
    "vLLM v0.10.1 (CUDA graphs, continuous batching)": ("vllm-0.10", True),
    "vLLM V1": ("vllm-0.10", True), "vLLM": ("vllm-0.14", True),
    "vLLM (ROCm)": ("vllm-0.14", True),
    "SGLang": ("sglang", True), "SGLang v0.4.4": ("sglang", True),
    "SGLang (Flashinfer, Spec-v1)": ("sglang", True),
    "SGLang (FA4, Spec-v2 overlap)": ("sglang", True),
    "HF transformers": ("hf-eager", False), "HF transformers + PyTorch 2.5.1": ("hf-eager", False),
    "HF + CUDA graphs": ("gpt-fast", False), "gpt-fast (compile)": ("gpt-fast", False),
}  # fmt: skip

#: Mean context of a request in its middle, where the source gives none: prompt plus half of
#: the output, from the tasks' own descriptions.
CONTEXTS = {
    "GSM8K": 200, "gsm8k": 900, "CNN/DailyMail": 1000, "InstructCoder": 500, "MT-Bench": 300,
    "mtbench": 500, "math500": 600, "ShareGPT": 450, "HumanEval": 350, "humaneval": 350,
    "livecodebench": 900, "financeqa": 900, "gpqa": 900, "Alpaca": 250,
}  # fmt: skip
DEFAULT_CONTEXT = 400
#: Prompt tokens of a task, its template included; an answer is twice what its middle lies
#: beyond the prompt.
PROMPTS = {"GSM8K": 100, "HumanEval": 200, "Alpaca": 50, "Math500": 100, "MT-bench": 100}
DEFAULT_PROMPT = 200
#: Sources that print the throughput of a server with so many requests at a time, so that
#: reading prompts is part of it; the others print the speed of decoding.
SERVED = ("DFlash", "EAGLE-3 (Li", "vLLM blog: EAGLE-3", "vLLM blog: EAGLE 3.1")

#: Trees that sources use without printing them: EAGLE's default tree (25 nodes, 5 deep),
#: EAGLE-2/3's dynamic tree (60 nodes, 6 and 8 deep, 10 wide), Medusa's (63 nodes).
TREES = {
    "EAGLE-1": Tree(steps=5, topk=5, nodes=25),
    "EAGLE-2": Tree(steps=6, topk=10, nodes=59),
    "EAGLE-3": Tree(steps=8, topk=10, nodes=59),
    "Medusa": Tree(steps=4, topk=10, nodes=63),
}
ASSUMED = "context and prompt by task, trees by method where the source prints none"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row that can be predicted. `num_draft_tokens` is the number of tokens verified
    beyond the first; `tau` None where only the shape over batch is known. `served`: the
    speedup is that of a server's throughput, prompts of `prompt_tokens` included."""

    label: str
    source: str
    url: str
    task: str
    group: str  # rows that differ only in K or tree
    series: str  # rows that differ only in batch
    known_stack: bool
    deployment: Deployment
    batch: int
    context: int
    prompt_tokens: int
    served: bool
    num_draft_tokens: int
    tau: float | None
    speedup: float
    printed_digits: int  # of the speedup, for the rounding that does not count as error


@cache
def table() -> tuple[dict[str, str], ...]:
    """All rows as printed."""
    with PATH.open(newline="", encoding="utf-8") as stream:
        return tuple(csv.DictReader(stream))


def cases(use_classes: tuple[str, ...]) -> tuple[list[Case], dict[str, int]]:
    """Cases of these classes, and how many rows were left out for which reason."""
    found: list[Case] = []
    left_out: dict[str, int] = {}
    for row in table():
        if row["use_class"] not in use_classes:
            continue
        case = _case(row)
        if isinstance(case, str):
            left_out[case] = left_out.get(case, 0) + 1
        else:
            found.append(case)
    return found, left_out


def _case(row: Mapping[str, str]) -> Case | str:
    """The case of a row, or the reason why there is none."""
    if "from memory" in row["confidence"]:
        return "quoted from memory"
    if not row["speedup"]:
        return "no speedup printed"
    if row["load_note"].startswith("QPS"):
        return "end-to-end latency under load, with queueing: not a step ratio"
    if row["engine"] not in RUNTIMES:
        return f"engine {row['engine'] or 'not stated'} is not modelled"
    if not row["batch_or_concurrency"]:
        return "batch not stated"
    gpu = GPUS.get(row["hardware"].split(" (same")[0])
    if row["hardware"].startswith("RTX 3090 (7B"):
        gpu = "rtx3090" if "7B" in row["target_model"] else "a100-sxm-40gb"
    if gpu is None or row["target_model"] not in MODELS:
        return "hardware or target not in the catalogue"
    tau = float(row["tau"]) if row["tau"] else None
    if tau is not None and float(row["speedup"]) > 1.02 * tau:  # digitized figures: ±1 %
        return "printed speedup above the printed acceptance length"
    runtime, known = RUNTIMES[row["engine"]]
    target = PlacedModel(
        spec=ss.model(MODELS[row["target_model"]]),
        weights=_weights(row["precision"]),
        routing=TYPICAL,
        tensor_parallel=int(float(row["n_gpu_tp"][:1])) if row["n_gpu_tp"][:1].isdigit() else 1,
    )
    drafting = _draft(row, target)
    if isinstance(drafting, str):
        return drafting
    draft, k = drafting
    same = (row["source"], row["target_model"], row["method"], row["draft_model"], row["task"],
            row["temperature"])  # fmt: skip
    shape = row["K_note"] if row["K"] else ""
    return Case(
        label=f"{row['target_model']} {row['method']} {gpu} {row['engine'].split(' ')[0]} "
        f"batch {row['batch_or_concurrency'].split(' ')[0]} K={k} {row['task']}".strip(),
        source=row["source"], url=row["url"], task=row["task"],
        group="|".join((*same, row["batch_or_concurrency"])),
        series="|".join((*same, row["K"], shape)),
        known_stack=known,
        deployment=Deployment(target=target, draft=draft, gpu=ss.gpu(gpu),
                              runtime=ss.runtime(runtime)),
        batch=int(float(row["batch_or_concurrency"].split(" ")[0])),
        context=_context(row), prompt_tokens=_prompt(row),
        served=known and row["source"].startswith(SERVED), num_draft_tokens=k, tau=tau,
        speedup=float(row["speedup"]),
        printed_digits=len(row["speedup"].partition(".")[2]),
    )  # fmt: skip


def _weights(precision: str) -> str:
    for text, dtype in (("int4", "int4"), ("MXFP4", "fp4"), ("NVFP4", "fp4")):
        if text in precision:
            return dtype
    return "bf16"


def _context(row: Mapping[str, str]) -> int:
    text = row["context_len"]
    if "ISL 1024" in text:
        return 1536
    if text[:1].isdigit():
        return int(text.split(" ")[0]) + 64
    return CONTEXTS.get(row["task"], DEFAULT_CONTEXT)


def _prompt(row: Mapping[str, str]) -> int:
    printed = row["context_len"]
    if printed.startswith("ISL "):
        return int(printed.split(" ")[1])
    return PROMPTS.get(row["task"], DEFAULT_PROMPT)


def _draft(row: Mapping[str, str], target: PlacedModel):  # type: ignore[no-untyped-def]
    """(draft, tokens verified beyond the first), or the reason why there is none."""
    method, k = row["method"], int(float(row["K"])) if row["K"] else None
    if method.startswith("prompt-lookup"):
        return make_draft(target, method="ngram"), k or 10
    if method.startswith("DFlash"):
        name = "dflash-qwen3-4b" if "Qwen3-4B" in row["target_model"] else "dflash-qwen3-8b"
        return make_draft(target, method="block", model=ss.model(name)), (k or 16) - 1
    if method == "Medusa":
        tree = TREES["Medusa"]
        return make_draft(target, method="medusa", tree=tree), tree.nodes
    if method == "independent draft":
        if "68" not in row["draft_model"]:
            return "draft model is not in the catalogue"
        return make_draft(target, model=ss.model("llama-68m")), k or 5
    if method.startswith("tree speculative"):
        steps = int(row["K_note"].rsplit(" ", 1)[1])
        nodes = k or 128
        tree = Tree(steps=steps, topk=-(-nodes // steps), nodes=nodes)
        return make_draft(target, model=ss.model("llama-68m"), tree=tree), nodes
    if method.startswith("EAGLE"):
        return _eagle(row, target, k)
    return f"method {method} is not modelled"


def _eagle(row: Mapping[str, str], target: PlacedModel, k: int | None):  # type: ignore[no-untyped-def]
    method = "eagle3" if row["method"].startswith("EAGLE-3") else "eagle"
    note, runtime = row["K_note"], RUNTIMES[row["engine"]][0]
    if "steps" in note and "topk 10" in note and k:
        tree = Tree(steps=7, topk=10, nodes=k - 1)
        return make_draft(target, method=method, tree=tree), tree.nodes
    if k and runtime != "hf-eager":
        return make_draft(target, method=method), k
    if runtime.startswith("vllm"):
        return make_draft(target, method=method), 3
    tree = TREES.get(row["method"], TREES["EAGLE-1"])
    return make_draft(target, method=method, tree=tree), tree.nodes
