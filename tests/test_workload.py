"""Arrivals, lengths and traces: moments, keys, and what bad files say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specsim.errors import RecordError
from specsim.workload import (
    ArrivalProcess,
    LengthLaw,
    Requests,
    TrafficMix,
    arrival_times,
    draw_lengths,
    generate,
    read_trace,
)

COUNT = 40_000


@pytest.mark.parametrize(
    ("process", "cv"), [("poisson", 1.0), ("gamma", 0.4), ("gamma", 2.5), ("constant", 0.0)]
)
def test_arrivals_have_their_rate_and_spread(process: str, cv: float) -> None:
    """Mean interval within 4 standard errors, cv within 5 %."""
    law = ArrivalProcess(process=process, rate_per_s=8.0, cv=cv or 1.0)  # type: ignore[arg-type]
    times = arrival_times(law, np.random.default_rng(0), COUNT)
    intervals = np.diff(times)
    assert np.all(intervals >= 0)
    assert intervals.mean() == pytest.approx(1 / 8, abs=4 * (cv / 8) / np.sqrt(COUNT) + 1e-12)
    assert intervals.std() / intervals.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)


def test_closed_loop_starts_with_its_concurrency() -> None:
    times = arrival_times(
        ArrivalProcess(process="closed", concurrency=3), np.random.default_rng(0), 5
    )
    assert times[:3].tolist() == [0, 0, 0]
    assert np.isnan(times[3:]).all()


LAWS = [
    (LengthLaw(distribution="constant", value=7), 7.0, 0.0),
    (LengthLaw(distribution="uniform", low=1, high=9), 5.0, np.sqrt(80 / 12)),
    (LengthLaw(distribution="lognormal", mean=300.0, cv=0.8), 300.0, 240.0),
    (LengthLaw(distribution="geometric", mean=40.0), 40.0, np.sqrt(40 * 39)),
    (LengthLaw(distribution="empirical", values=(10, 30), weights=(3.0, 1.0)), 15.0, np.sqrt(75)),
]


@pytest.mark.parametrize(("law", "mean", "deviation"), LAWS, ids=lambda x: str(x)[:24])
def test_lengths_have_their_moments(law: LengthLaw, mean: float, deviation: float) -> None:
    drawn = draw_lengths(law, np.random.default_rng(1), COUNT)
    assert drawn.min() >= 1
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / np.sqrt(COUNT) + 1e-9)
    assert drawn.std() == pytest.approx(deviation, rel=0.05, abs=1e-9)


@given(mean=st.floats(0.5, 1e5), cv=st.floats(0, 5), top=st.integers(1, 10_000))
def test_lengths_keep_to_their_bounds(mean: float, cv: float, top: int) -> None:
    law = LengthLaw(distribution="lognormal", mean=mean, cv=cv, maximum=top)
    drawn = draw_lengths(law, np.random.default_rng(0), 50)
    assert 1 <= drawn.min() <= drawn.max() <= top


@pytest.mark.parametrize(
    "arguments",
    [
        {"distribution": "constant", "value": 0},
        {"distribution": "uniform", "low": 5, "high": 2},
        {"distribution": "lognormal", "mean": -1.0, "cv": 1.0},
        {"distribution": "lognormal", "mean": float("inf"), "cv": 1.0},
        {"distribution": "lognormal", "mean": 5.0, "cv": -1.0},
        {"distribution": "empirical"},
        {"distribution": "empirical", "values": (1,), "weights": (0.0,)},
        {"distribution": "constant", "value": 4, "maximum": 0},
    ],
)
def test_impossible_lengths(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"length|cv|maximum"):
        LengthLaw(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"process": "poisson"}, {"process": "poisson", "rate_per_s": 0.0},
        {"process": "gamma", "rate_per_s": 1.0, "cv": 0.0},
        {"process": "closed", "concurrency": 0}, {"process": "closed", "think_time_s": -1.0},
    ],
)  # fmt: skip
def test_impossible_arrivals(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rate_per_s|cv|concurrency|think"):
        ArrivalProcess(**arguments)  # type: ignore[arg-type]


def mixed(
    second: LengthLaw, *, seed: int = 0, rate: float = 4.0, weight: float = 3.0,
    first: LengthLaw = LAWS[2][0],
) -> Requests:  # fmt: skip
    return generate(
        arrivals=ArrivalProcess(process="poisson", rate_per_s=rate),
        classes=(
            TrafficMix(name="code", weight=weight, prompt_tokens=first, output_tokens=LAWS[3][0]),
            TrafficMix(name="chat", weight=1.0, prompt_tokens=second, output_tokens=LAWS[1][0]),
        ),
        num_requests=COUNT, seed=seed,
    )  # fmt: skip


def test_columns_are_keyed_by_purpose() -> None:
    """Another law for one class, or another rate, leaves everything else as it was."""
    base, changed = mixed(LAWS[0][0]), mixed(LAWS[1][0])
    assert np.array_equal(base.arrival_s, changed.arrival_s)
    assert np.array_equal(base.output_tokens, changed.output_tokens)
    assert np.array_equal(base.traffic_class, changed.traffic_class)
    code = base.traffic_class == 0
    assert np.array_equal(base.prompt_tokens[code], changed.prompt_tokens[code])
    assert code.mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / COUNT))
    # the first class's law leaves the second's draws alone, and so does its share
    other = mixed(LAWS[3][0], first=LAWS[0][0])
    rarer = mixed(LAWS[3][0], weight=1.0)
    chat = mixed(LAWS[3][0]).traffic_class == 1
    assert np.array_equal(mixed(LAWS[3][0]).prompt_tokens[chat], other.prompt_tokens[chat])
    assert np.array_equal(mixed(LAWS[3][0]).prompt_tokens[chat], rarer.prompt_tokens[chat])
    faster = mixed(LAWS[0][0], rate=8.0)
    assert np.allclose(faster.arrival_s * 2, base.arrival_s)
    assert np.array_equal(faster.prompt_tokens, base.prompt_tokens)
    assert not np.array_equal(mixed(LAWS[0][0], seed=1).arrival_s, base.arrival_s)


def test_shared_prefix_is_put_before_every_prompt() -> None:
    drawn = generate(
        arrivals=ArrivalProcess(process="constant", rate_per_s=1.0),
        classes=(TrafficMix(name="", prompt_tokens=LAWS[0][0], output_tokens=LAWS[0][0]),),
        num_requests=3, seed=0, shared_prefix_tokens=40, block_size=16,
    )  # fmt: skip
    assert drawn.prompt_tokens.tolist() == [47, 47, 47]
    assert drawn.prefixes is not None
    assert len(set(drawn.prefixes)) == 1
    assert len(drawn.prefixes[0]) == 2  # two whole blocks of 16


# --- traces ------------------------------------------------------------------------------

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.2299600,3180,8\r\n"
    "2023-11-16 18:17:05.9799600,110,27"
)
BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens\n"
    "5,a,1,ChatGPT,472,18,490\n"
    "45,b,2,ChatGPT,1087,0,1087\n"
    "118,c,3,GPT-4,417,276,693\n"
)
MOONCAKE = "\n".join(
    json.dumps(row)
    for row in (
        {"timestamp": 0, "input_length": 1100, "output_length": 6, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 600, "output_length": 4, "hash_ids": [0, 9]},
    )
)
PLAIN = "arrival_s,prompt_tokens,output_tokens\n1.5,10,3\n1.5,20,4\n"


@pytest.mark.parametrize(
    ("name", "text", "times", "prompts", "outputs"),
    [
        ("a.csv", AZURE, [0, 0.25, 2], [4808, 3180, 110], [10, 8, 27]),
        ("b.csv", BURSTGPT, [0, 113], [472, 417], [18, 276]),  # failed requests left out
        ("m.jsonl", MOONCAKE, [0, 3], [1100, 600], [6, 4]),
        ("p.csv", PLAIN, [0, 0], [10, 20], [3, 4]),
        ("v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0,9,2\n", [0], [9], [2]),
    ],
)
def test_formats(
    tmp_path: Path, name: str, text: str, times: list[float], prompts: list[int],
    outputs: list[int],
) -> None:  # fmt: skip
    path = tmp_path / name
    path.write_bytes(text.encode())
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == pytest.approx(times, abs=1e-6)
    assert trace.prompt_tokens.tolist() == prompts
    assert trace.output_tokens.tolist() == outputs


@pytest.mark.parametrize(
    ("stamps", "seconds"),
    [
        # Azure 2024 leaves the fraction out where it is zero
        (["2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00"], 0.99007),
        (["2024-05-10T00:00:00Z", "2024-05-10T00:00:01.5Z"], 1.5),
        # 23:00 five hours west of Greenwich is four o'clock there
        (["2024-05-10 23:00:00.25-05:00", "2024-05-11 05:00:00.75+00:00"], 3600.5),
        (["2024-05-10 23:59:59", "2024-05-11 00:00:00.1234567"], 1.1234567),
    ],
)
def test_time_zones(tmp_path: Path, stamps: list[str], seconds: float) -> None:
    path = tmp_path / "a.csv"
    rows = "".join(f"{stamp},10,5\n" for stamp in stamps)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows, encoding="utf-8")
    assert read_trace(path).arrival_s.tolist() == pytest.approx([0.0, seconds], abs=1e-6)


def test_mooncake_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(MOONCAKE, encoding="utf-8")
    trace = read_trace(path)
    assert trace.prefixes == ((0, 1, 2), (0, 9))
    assert trace.prefix_block_tokens == 512


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", "empty file"),
        ("x.csv", "arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("x.csv", "TIMESTAMP,ContextTokens\n", "column 'generatedtokens' is missing"),
        ("x.csv", "a,b,c\n1,2,3\n", "expected one of timestamp,contexttokens"),
        ("x.csv", PLAIN + "0.5,1,1\n", "line 4: time 0.5 s is before"),
        ("x.csv", PLAIN + "-1,1,1\n", r"line 4: arrival_s = -1.0: expected a time >= 0"),
        ("x.csv", PLAIN + "nan,1,1\n", "line 4: arrival_s = nan"),
        ("x.csv", PLAIN + "soon,1,1\n", "line 4: arrival_s = 'soon': expected seconds or"),
        ("x.csv", PLAIN + "2,many,1\n", "line 4: prompt_tokens = 'many'"),
        ("x.csv", PLAIN + "2,1.5,1\n", r"expected a whole number in 1\.\.1000000"),
        ("x.csv", PLAIN + "2,0,1\n", r"expected a whole number in 1\.\.1000000"),
        ("x.csv", PLAIN + "2,1\n", "line 4: 2 columns; expected 3"),
        # longer than any prompt: beyond 64 bits, or so long that a sum would wrap around
        ("x.csv", PLAIN + "2,1e300,1\n", "line 4: prompt_tokens = '1e300'"),
        ("x.csv", PLAIN + "2,1,9000000000000000000\n", "line 4: output_tokens = '9"),
        ("x.csv", PLAIN + '2,"' + "1" * 200_000 + '",1\n', "line 4: field larger than"),
        ("x.jsonl", MOONCAKE + '\n{"timestamp": ' + "1" * 5000 + "}", "line 3: not JSON"),
        ("x.jsonl", MOONCAKE + '\n{"timestamp": 4', "line 3: not JSON"),
        ("x.jsonl", MOONCAKE + "\n[1]", "line 3: expected a JSON object, found list"),
        ("x.jsonl", '{"timestamp": 1, "input_length": 3}', "key 'output_length' is missing"),
        ("x.jsonl", '{"timestamp":1,"input_length":3,"output_length":1,"hash_ids":"a"}',
         "expected a list of integers"),
        ("x.jsonl", "\n\n", "no requests"),
    ],
)  # fmt: skip
def test_bad_traces(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_no_such_trace(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(RecordError, match="directory"):
        read_trace(tmp_path)
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecordError, match="UTF-8"):
        read_trace(binary)


def test_window_and_rate_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(AZURE, encoding="utf-8")
    trace = read_trace(path).window(0.1, 10.0)
    assert trace.arrival_s.tolist() == pytest.approx([0.15, 1.9], abs=1e-6)
    drawn = generate(
        arrivals=ArrivalProcess(process="trace"), classes=(TrafficMix(name=""),),
        num_requests=10, seed=0, trace=trace, rate_scale=2.0,
    )  # fmt: skip
    assert drawn.arrival_s.tolist() == pytest.approx([0.075, 0.95], abs=1e-6)
    assert drawn.output_tokens.tolist() == [8, 27]
    with pytest.raises(RecordError, match="no request between 50"):
        trace.window(50.0, None)


def test_lengths_of_a_trace_need_one() -> None:
    with pytest.raises(ValueError, match="no trace file"):
        generate(
            arrivals=ArrivalProcess(process="poisson", rate_per_s=1.0),
            classes=(TrafficMix(name=""),), num_requests=3, seed=0,
        )  # fmt: skip


def test_a_trace_with_prefixes_takes_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(MOONCAKE, encoding="utf-8")
    with pytest.raises(ValueError, match="the trace names the prefixes"):
        generate(
            arrivals=ArrivalProcess(process="trace"), classes=(TrafficMix(name=""),),
            num_requests=10, seed=0, trace=read_trace(path), shared_prefix_tokens=64,
        )  # fmt: skip
