"""docs/drafts.md and its figures, made from docs/drafts.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reference.prompts import DOMAINS
from reference.training.statistics import Z95, learning_curve
from specsim.errors import ConfigError, MissingDataError

AIM = 0.5
ORDER = ("code", "factual-qa", "creative")  # the article's ordering of α, largest first
TEXT = Path(__file__).with_name("page.md")
EXTRAPOLATED = (2_000_000, 10_000_000, 100_000_000)


def read(path: Path) -> dict[str, Any]:
    """The drafts of a results file, by name.

    Raises:
        MissingDataError, ConfigError: naming the file.
    """
    try:
        drafts = json.loads(path.read_text(encoding="utf-8"))["drafts"]
    except FileNotFoundError:
        raise MissingDataError(f"{path} is missing: run evaluate-drafts first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a results file of drafts ({error})") from None
    return dict(sorted(drafts.items(), key=lambda item: (item[0] != "eagle", item[0])))


def write(drafts: dict[str, Any], docs: Path) -> None:
    """The page, and the figures beside it."""
    from reference.training.figures import draw

    (docs / "drafts.md").write_text(render(drafts), encoding="utf-8")
    draw(drafts, docs / "figures")


def render(drafts: dict[str, Any]) -> str:
    """The page's text: page.md with its {parts} filled in."""
    parts: dict[str, Callable[[dict[str, Any]], str]] = {
        "family": family,
        "overlap": overlap_table,
        "positions": positions_table,
        "decoding": decoding_table,
        "speedup": speedup_table,
        "ordering": ordering,
        "curve": curve_table,
        "verdict": verdict,
        "conditions": conditions,
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part(drafts).rstrip("\n"))
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pm(estimate: Sequence[float], digits: int = 3) -> str:
    """Estimate ± half of its 95 % interval."""
    return f"{estimate[0]:.{digits}f} ± {Z95 * estimate[1]:.{digits}f}"


def span(estimate: Sequence[float]) -> str:
    """Estimate and 95 % interval."""
    middle, low, high = estimate
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def first(draft: dict[str, Any], domain: str, temperature: str, what: str) -> list[float]:
    """A quantity at the first drafted position: [estimate, standard error]."""
    found: list[float] = draft["overlap"][domain][temperature][what][0]
    return found


def family(drafts: dict[str, Any]) -> str:
    """Sizes and training of each draft."""
    rows = [
        [
            f"`{name}`",
            f"{d['trained_parameters'] / 1e6:.1f} M",
            f"{d['file_bytes'] / 1e6:.1f} MB",
            f"{d['data']['output_tokens']:,} × {d['training']['epochs']}",
            f"{d['training']['steps']:,}",
            f"{d['training']['cpu_seconds'] / 60:.0f} min",
        ]
        for name, d in drafts.items()
    ]
    header = ("draft", "trained parameters", "file", "tokens × epochs", "steps", "processor time")
    return table(header, rows)


def overlap_table(drafts: dict[str, Any]) -> str:
    """1 − TV at temperature 1, greedy agreement at 0, covered mass."""
    rows = []
    for name, d in drafts.items():
        for what, t, label in (
            ("one_minus_tv", "1", "1 − TV, T = 1"),
            ("greedy_agreement", "0", "same token, T = 0"),
            ("covered_mass", "1", "p on draft's tokens, T = 1"),
        ):
            rows.append([f"`{name}`", label, *(pm(first(d, x, t, what)) for x in DOMAINS)])
    return table(("draft", "", *DOMAINS), rows)


def positions_table(drafts: dict[str, Any]) -> str:
    """1 − TV at each drafted position of drafts that roll themselves out."""
    rows = [
        [f"`{name}`", domain, *(pm(p) for p in d["overlap"][domain]["1"]["one_minus_tv"])]
        for name, d in drafts.items()
        if d["kind"] == "eagle"
        for domain in DOMAINS
    ]
    count = max((len(row) - 2 for row in rows), default=0)
    return table(("draft", "domain", *(f"position {i + 1}" for i in range(count))), rows)


def decoding_table(drafts: dict[str, Any]) -> str:
    """τ by domain from real decoding."""
    rows = []
    for setting in settings(drafts):
        for name, d in drafts.items():
            if found := d["decoding"].get(setting):
                rows.append(
                    [label(setting), f"`{name}`", *(pm(found[x]["tau"], 2) for x in DOMAINS)]
                )
    return table(("", "draft", *DOMAINS), rows)


def speedup_table(drafts: dict[str, Any]) -> str:
    """Speedup over autoregressive decoding, and the cost of a drafted token."""
    rows = []
    for setting in settings(drafts):
        for name, d in drafts.items():
            if found := d["decoding"].get(setting):
                costs = [found[x]["cost_ratio"][0] for x in DOMAINS]
                rows.append(
                    [label(setting), f"`{name}`", f"{sum(costs) / len(costs):.3f}",
                     *(span(found[x]["speedup"]) for x in DOMAINS)]
                )  # fmt: skip
    return table(("", "draft", "c", *DOMAINS), rows)


def settings(drafts: dict[str, Any]) -> list[str]:
    """The decoding settings that were measured: dtype/temperature/K."""
    found = {setting for d in drafts.values() for setting in d["decoding"]}
    return sorted(found)


def label(setting: str) -> str:
    """`bfloat16/0/4` → `bfloat16, T = 0, K = 4`."""
    dtype, temperature, k = setting.split("/")
    return f"{dtype}, T = {temperature}, K = {k}"


def ordering(drafts: dict[str, Any]) -> str:
    """Whether α falls from code to factual questions to creative writing, draft by draft."""
    lines = []
    for name, d in drafts.items():
        for what, t, words in (
            ("one_minus_tv", "1", "1 − TV at temperature 1"),
            ("greedy_agreement", "0", "greedy agreement"),
        ):
            values = [first(d, x, t, what) for x in ORDER]
            pairs = [
                compare(*pair) for pair in zip(ORDER, ORDER[1:], values, values[1:], strict=False)
            ]
            lines.append(f"- `{name}`, {words}: {'; '.join(pairs)}.")
    return "\n".join(lines)


def compare(larger: str, smaller: str, a: Sequence[float], b: Sequence[float]) -> str:
    """`code > factual-qa by 0.05 ± 0.02: holds`."""
    difference, half = a[0] - b[0], Z95 * (a[1] ** 2 + b[1] ** 2) ** 0.5
    verdict = "holds" if difference > half else "does not hold" if difference < -half else "open"
    return f"{larger} − {smaller} = {difference:+.3f} ± {half:.3f} ({verdict})"


def curve_table(drafts: dict[str, Any]) -> str:
    """The held-out overlap at checkpoints, and where the curve leads."""
    rows = []
    for name, d in drafts.items():
        tokens, overlaps = curve_points(d)
        at = learning_curve(tokens, overlaps, EXTRAPOLATED)
        rows.append(
            [f"`{name}`", f"{tokens[-1]:,} tokens: {overlaps[-1]:.3f}",
             *(f"{y:.2f} ({low:.2f}–{high:.2f})" for _, y, low, high in at)]
        )  # fmt: skip
    return table(("draft", "last checkpoint", *(f"{n / 1e6:g} M" for n in EXTRAPOLATED)), rows)


def curve_points(draft: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Tokens seen and held-out overlap, from a twentieth of the run on."""
    last = draft["history"][-1][0]
    points = [(n, overlap) for n, _, overlap in draft["history"] if n >= last / 20]
    return [n for n, _ in points], [overlap for _, overlap in points]


def verdict(drafts: dict[str, Any]) -> str:
    """The two aims, and whether they are met."""
    head = {name: d for name, d in drafts.items() if d["kind"] == "eagle"}
    lines = []
    for name, d in head.items():
        values = [(x, first(d, x, "1", "one_minus_tv")) for x in ("code", "factual-qa")]
        met = all(v[0] >= AIM for _, v in values)
        found = ", ".join(f"{x} {pm(v)}" for x, v in values)
        lines.append(
            f"- 1 − TV ≥ {AIM} on code and factual questions, `{name}`, temperature 1: "
            f"**{'met' if met else 'not met'}** ({found})."
        )
    best = max(
        ((found[x]["speedup"][1], found[x]["speedup"], name, x, setting)
         for name, d in drafts.items() for setting, found in d["decoding"].items()
         if setting.startswith("bfloat16") for x in DOMAINS),
    )  # fmt: skip
    low, speedup, name, domain, setting = best
    lines.append(
        f"- A speedup above 1 in bfloat16 in at least one domain: "
        f"**{'met' if low > 1 else 'not met'}** (the interval that starts highest: "
        f"{span(speedup)}, `{name}`, {domain}, {label(setting)})."
    )
    return "\n".join(lines)


def conditions(drafts: dict[str, Any]) -> str:
    """Machine and versions of the measurements."""
    found = {json.dumps(d["measured"], sort_keys=True) for d in drafts.values()}
    return "; ".join(
        f"{m['processor']}, {m['threads']} thread{'s' if m['threads'] > 1 else ''}, "
        f"torch {m['torch']}"
        for m in map(json.loads, sorted(found))
    )
