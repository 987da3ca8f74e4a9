"""`reference serve`: real requests by a trace; and the prompt sets that feed it."""

import json

import pytest
import torch
from test_reference_helpers import run, shorten_prompts, tiny_directory

from reference.prompts import DOMAINS, load_prompts
from specsim.records import RequestRecord, read_all


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_directory(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def one_thread():
    """Commands choose the number of threads for the process; the tests want one."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def short_prompts():
    with pytest.MonkeyPatch.context() as patch:
        shorten_prompts(patch)
        yield


def test_serve_from_a_trace(capsys, model, tmp_path):
    trace = tmp_path / "trace.csv"
    rows = [f"{0.01 * i},{5 + i},{3 + 2 * i},c{i % 2}" for i in range(8)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens,traffic_class\n" + "\n".join(rows))
    out = tmp_path / "served.jsonl"
    status, stdout, _ = run(
        capsys, "serve", "--target", model, "--threads", 1, "--trace", trace, "--slots", 3,
        "--draft", "ngram", "--k", 3, "--prefill-chunk", 4, "--context", 64, "--out", out, "--json",
    )  # fmt: skip
    result = json.loads(stdout)
    _, records = read_all(out, RequestRecord)
    assert status == 0
    assert result["completed"] == len(records) == 8
    assert result["output_tokens"] == sum(3 + 2 * i for i in range(8))
    for record in records:
        i = round(record.arrival_s / 0.01)
        assert record.prompt_tokens == 5 + i
        assert record.output_tokens == 3 + 2 * i
        assert record.traffic_class == f"c{i % 2}"
        assert record.chunk_times_s[0] > record.arrival_s


def test_json_lines_end_at_newlines_only(capsys, model, tmp_path):
    """U+2028 may stand in a JSON string as it is; the output's folder is made."""
    trace, out = tmp_path / "trace.jsonl", tmp_path / "new" / "served.jsonl"
    rows = [{"arrival_s": 0, "output_tokens": 3, "prompt": "a\u2028b"}] * 2
    trace.write_text("\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    status, _, _ = run(
        capsys, "serve", "--target", model, "--threads", 1, "--trace", trace, "--context", 64,
        "--out", out,
    )  # fmt: skip
    assert status == 0
    assert len(read_all(out, RequestRecord)[1]) == 2


def test_serve_poisson(capsys, model):
    status, out, _ = run(
        capsys, "serve", "--target", model, "--threads", 1, "--rate", 500, "--num-requests", 6,
        "--output-tokens", 9, "--context", 128,
    )  # fmt: skip
    assert status == 0
    assert "6 of 6 requests" in out
    assert "ttft_s" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "arrival_s,output_tokens\n0,4\n", "line 2: expected arrival_s"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n-1,4,4\n", "out of range"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("a.csv", f"arrival_s,prompt,output_tokens\n0,{'a' * 200_000},1\n", "field larger than"),
        ("a.jsonl", '{"arrival_s":0,"prompt_tokens":1e400,"output_tokens":1}', "OverflowError"),
        ("a.jsonl", '{"arrival_s": 0', "line 1: not JSON"),
        ("a.jsonl", "[1, 2]", "line 1: expected arrival_s"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n0,400,4\n", "exceed --context"),
    ],
)
def test_bad_traces(capsys, model, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    status, out, err = run(
        capsys,
        "serve",
        "--threads",
        1,
        "--target",
        model,
        "--trace",
        tmp_path / name,
        "--context",
        64,
    )
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompt_sets(domain):
    """At least 30 prompts each, all different, ids unique."""
    prompts = load_prompts(domain)
    assert len(prompts) >= 30
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)
    assert all(p.domain == domain and p.text.strip() == p.text for p in prompts)


def test_copy_prompts_hold_what_is_to_be_copied():
    kinds = {p.id.split("-")[0] for p in load_prompts("copy")}
    assert kinds == {"copy", "summarise"}
