"""Training drafts on a tiny target: data, gradients, checkpoints, cards, refusals."""

import dataclasses
import json

import pytest
import torch
from test_reference_helpers import tiny_config
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from reference.cache import KVCache, make_batch
from reference.draft.card import fingerprint
from reference.draft.eagle import EagleConfig, random_head
from reference.draft.trained import load_trained, trained_tensors, write_card, write_draft
from reference.model import random_model
from reference.prompts import DOMAINS, load_prompts
from reference.sampling import SeededRandomness, Warp
from reference.tokenizer import Tokenizer
from reference.training import prompts as training_prompts
from reference.training.batches import Columns, epoch_batches, unpack
from reference.training.checkpoint import Checkpoints
from reference.training.corpus import Corpus, CorpusSettings, frequent_tokens
from reference.training.generate import TeacherHead, generate
from reference.training.kinds import Kind, new_trainee, spread
from reference.training.loss import divergence, judge
from reference.training.train import Run, TrainSettings, evaluation_steps
from reference.training.trainees import EagleTrainee, LayersTrainee
from reference.weights import Loaded
from specsim.errors import ConfigError, MissingDataError

VOCAB, REDUCED = 40, 24
LAYERS = (1, 2)  # stored hidden states of the two-layer target


def tiny(seed, dtype=torch.float32):
    return random_model(tiny_config(VOCAB, max_positions=256), seed, dtype=dtype)


@pytest.fixture(scope="module")
def target():
    return tiny(3)


@pytest.fixture(scope="module")
def loaded(target):
    words = {f"w{i}": i for i in range(VOCAB)}
    backend = Backend(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Loaded("tiny", target, Tokenizer(backend, frozenset({7})))


@pytest.fixture(scope="module")
def shards(target):
    return [written(target, t, seed) for seed, t in enumerate((1.0, 0.0, 1.0, 0.0))]


def written(target, temperature, seed, new=14):
    lines = [[1, 2 + i, 3 + 2 * i][: 2 + i % 2] for i in range(6)]
    generator = torch.Generator().manual_seed(seed)
    return generate(
        target, lines, temperature=temperature, new=new, eos=frozenset({7}),
        feature_layers=LAYERS, generator=generator,
    )  # fmt: skip


@pytest.fixture(scope="module")
def examples(shards):
    return unpack(shards, Columns((1,), 8))


@pytest.fixture(scope="module")
def token_ids(shards):
    return frequent_tokens(shards, REDUCED, VOCAB)


# --- data ---------------------------------------------------------------------------------


def test_generated_text_features_and_log_z_are_the_targets(target):
    """Greedy text = argmax at every token; features and log Z = an uncached pass."""
    made = written(target, 0.0, 0)
    start = 0
    for length, prompt in zip(made.lengths.tolist(), made.prompt_lengths.tolist(), strict=True):
        tokens = made.tokens[start : start + length].tolist()
        out = target(
            make_batch([tokens], cache := target.new_cache(1, 64)), cache, feature_layers=LAYERS
        )
        stored = made.features[start : start + length].float()
        torch.testing.assert_close(stored, out.features, rtol=0.01, atol=0.02)  # bfloat16
        assert tokens[prompt:] == out.logits[prompt - 1 : -1].argmax(-1).tolist()
        z = made.log_z[start + prompt - 1 : start + length]
        torch.testing.assert_close(z, out.logits[prompt - 1 :].logsumexp(-1), rtol=0.01, atol=0.02)
        assert 7 not in tokens[prompt:]  # the end of an output is not read, so not stored
        start += length
    assert start == len(made.tokens)


def test_sampled_text_has_the_targets_distribution(target):
    """First tokens of 3,000 outputs at temperature 1: within 5 standard errors of p."""
    n = 3000
    generator = torch.Generator().manual_seed(0)
    made = generate(
        target, [[1, 5]] * n, temperature=1.0, new=2, eos=frozenset(), feature_layers=LAYERS,
        generator=generator,
    )  # fmt: skip
    first = made.tokens.view(n, 3)[:, 2]  # the second token is not read
    cache = target.new_cache(1, 8)
    p = target(make_batch([[1, 5]], cache), cache).logits[-1].softmax(-1)
    share = torch.bincount(first.long(), minlength=VOCAB) / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-3).all()


def test_prompts_are_different_and_never_evaluated():
    made = training_prompts.training_prompts(9000, 0)
    texts = {p.text for p in made}
    assert len(texts) == 9000
    assert texts.isdisjoint(p.text for d in DOMAINS for p in load_prompts(d))
    assert made[:50] == training_prompts.training_prompts(50, 0)
    assert made[:50] != training_prompts.training_prompts(50, 1)
    assert [p.domain for p in made[:3]] == ["code", "factual-qa", "creative"]
    with pytest.raises(ValueError, match=r"factual-qa prompts wanted, there are"):
        training_prompts.training_prompts(12_000, 0)


def test_an_evaluated_prompt_in_the_templates_is_refused(monkeypatch):
    leaked = training_prompts.training_prompts(3, 0)[1]
    monkeypatch.setattr(training_prompts, "load_prompts", lambda domain: [leaked])
    with pytest.raises(ValueError, match="is an evaluation prompt"):
        training_prompts.training_prompts(30, 0)


def test_corpus_is_cached_resumed_and_keyed(loaded, tmp_path):
    settings = CorpusSettings(new=5, rows=4, feature_layers=LAYERS)
    corpus = Corpus(loaded, settings, tmp_path)
    first = corpus.make(0)
    stamp = corpus.path(0).stat().st_mtime_ns
    again = Corpus(loaded, settings, tmp_path).make(0)
    assert torch.equal(first.features, again.features)
    assert corpus.path(0).stat().st_mtime_ns == stamp
    corpus.path(0).unlink()
    assert torch.equal(corpus.make(0).tokens, first.tokens)  # seeded by the shard, not by order
    assert (corpus.temperature(0), corpus.temperature(1)) == (1.0, 0.0)
    other = Corpus(loaded, dataclasses.replace(settings, seed=1), tmp_path)
    assert other.key != corpus.key
    changed = Loaded("tiny", tiny(4), loaded.tokenizer)
    assert Corpus(changed, settings, tmp_path).key != corpus.key
    content = corpus.path(0).read_bytes()
    corpus.path(0).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="not a shard"):
        corpus.make(0)


def test_frequent_tokens(shards):
    counts = torch.zeros(VOCAB)
    for shard in shards:
        for example in unpack([shard], shortest=0):
            for token in example.tokens[example.prompt_length :].tolist():
                counts[token] += 1
    chosen = frequent_tokens(shards, 10, VOCAB)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert counts[chosen].min() >= counts[[i for i in range(VOCAB) if i not in chosen]].max()


def test_batches_hold_every_example_once(examples):
    batches = list(epoch_batches(examples, 4, 0, 1))
    assert sorted(id(e) for b in batches for e in b) == sorted(map(id, examples))
    orders = [
        [id(e) for b in epoch_batches(examples, 4, 0, epoch) for e in b] for epoch in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


# --- what is trained is what decodes -------------------------------------------------------


def random_trainee(kind, target, token_ids, seed=0):
    trainee = new_trainee(Kind(kind), target, token_ids, (2,), torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainee.module.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator) / max(1, p.shape[-1]) ** 0.5)
    return trainee


@pytest.mark.parametrize("kind", ["eagle", "layers:1", "layers:2"])
def test_passes_equal_the_decoders_own_drafting(
    kind, target, loaded, examples, token_ids, tmp_path
):
    """Logits in training, at positions 1 to 3, are those that the drafter computes in decoding."""
    trainee = random_trainee(kind, target, token_ids)
    path = save(tmp_path, kind, trainee, loaded, token_ids, exact=True)
    drafter = load_trained(path, loaded, pack=False)
    chosen = [e for e in examples if e.num_outputs >= 6][:3]
    passes = list(trainee.passes(chosen, 3 if kind == "eagle" else 1))
    for row, example in enumerate(chosen):
        expected = [s.logits[s.examples == row] for s in passes]
        root = example.prompt_length + 1  # tokens known when drafting starts
        got = drafted_logits(drafter, target, example, root, 3)
        for j in range(3):
            if kind == "eagle":  # pass j at the same token: j positions on
                want = expected[j][root - example.prompt_length - 1]
            else:
                want = expected[0][root - example.prompt_length - 1 + j]
            torch.testing.assert_close(got[j], centred(want), rtol=1e-4, atol=1e-4)


def drafted_logits(drafter, target, example, root, k):
    """The drafter's logits at k positions when the target's own tokens are what it draws."""
    tokens = example.tokens.tolist()
    cache = KVCache((2, 1, 1, 64, 4), torch.float32, torch.device("cpu"))
    drafter.bind(target, cache, 1, 64)
    drafter.observe(0, example.features[: root - 1].float())
    seen = []

    class Forced(SeededRandomness):
        def categorical(self, weights):
            seen.append(weights)
            return tokens[root + len(seen) - 1]

    row = type("Row", (), {"tokens": tokens[:root], "randomness": Forced(0)})()
    drafter.propose([row], [(1,) * k], Warp(temperature=1.0))
    ids = drafter.head.token_ids if hasattr(drafter, "head") else drafter.token_ids
    # softmax is invariant to a shift: compare up to each line's own constant.
    return [centred(w[ids].log()) for w in seen]


def centred(line):
    return line.float() - line.float().logsumexp(-1)


def save(folder, kind, trainee, loaded, token_ids, *, exact=False):
    from reference.draft.card import vocabulary_hash
    from reference.draft.trained import describe

    if exact:  # compare with what the file holds
        with torch.no_grad():
            for p in trainee.module.parameters():
                if p.requires_grad:
                    p.copy_(p.to(torch.bfloat16))
    path = folder / f"{Kind(kind).file_stem}.safetensors"
    card = {
        "kind": kind, "config": describe(trainee.module),
        "target": {"name": "tiny", "fingerprint": fingerprint(loaded.model),
                   "vocabulary": vocabulary_hash(loaded.tokenizer)},
    }  # fmt: skip
    write_draft(path, trained_tensors(trainee.module, token_ids), card)
    return path


@pytest.mark.parametrize("kind", ["eagle", "layers:1"])
def test_overlap_and_mass_by_hand(kind, target, examples, token_ids):
    """judge: Σ min(p, q) and Σ p over the draft's tokens, recomputed on the full vocabulary."""
    trainee = random_trainee(kind, target, token_ids)
    scored = next(iter(trainee.passes(examples[:2], 1)))
    scored = dataclasses.replace(scored, logits=scored.logits.detach())
    judged = judge(scored, token_ids)
    place = 0
    for example in examples[:2]:
        for at in range(example.prompt_length, len(example.tokens)):
            p = (TeacherHead(target)(example.features[at, -8:]) - example.log_z[at]).exp()
            assert float(p.sum()) == pytest.approx(1, abs=1e-5)
            q = torch.zeros(VOCAB)
            q[token_ids] = scored.logits[place].softmax(-1)
            assert float(judged.overlap[place]) == pytest.approx(
                float(torch.minimum(p, q).sum()), abs=1e-5
            )
            assert float(judged.mass[place]) == pytest.approx(float(p[token_ids].sum()), abs=1e-5)
            if at + 1 < len(example.tokens):
                hit = int(q.argmax()) == int(example.tokens[at + 1])
                assert float(judged.agrees[place]) == hit
            else:
                assert judged.agrees[place].isnan()
            place += 1
    assert place == len(judged.overlap)


# --- training ---------------------------------------------------------------------------------


def make_run(kind, target, examples, token_ids, folder, warnings=None, **changes):
    settings = TrainSettings(epochs=3, batch=4, rollout=2 if kind == "eagle" else 1, **changes)
    trainee = new_trainee(Kind(kind), target, token_ids, (2,), torch.float32, settings.seed)
    said = [] if warnings is None else warnings
    return Run(trainee, examples[:-4], examples[-4:], token_ids, settings, folder, {"kind": kind},
               said.append)  # fmt: skip


@pytest.mark.parametrize("kind", ["eagle", "layers:1"])
def test_training_learns(kind, target, examples, token_ids, tmp_path):
    run = make_run(kind, target, examples, token_ids, tmp_path, learning_rate=1e-2)
    before = run.held_out_overlap()
    assert run.go(lambda p: None)
    assert run.history[-1][2] > before + 0.02
    assert run.history[0][1] > run.history[-1][1]


@pytest.mark.parametrize("kind", ["eagle", "layers:2"])
def test_interrupted_and_resumed_gives_the_same_bytes(kind, target, examples, token_ids, tmp_path):
    whole = make_run(kind, target, examples, token_ids, tmp_path / "whole")
    whole.go(lambda p: None, save_every=3)
    steps = 0

    def stop():
        nonlocal steps
        steps += 1
        return steps > 6

    assert not (cut := make_run(kind, target, examples, token_ids, tmp_path / "cut")).go(
        lambda p: None, save_every=4, stop=stop
    )
    assert cut.step == 6
    resumed = make_run(kind, target, examples, token_ids, tmp_path / "cut")
    assert resumed.step == 6
    assert resumed.go(lambda p: None, save_every=3)
    assert resumed.history == whole.history
    a, b = whole.optimiser.tensors(), resumed.optimiser.tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_truncated_checkpoint_is_reported_and_the_last_good_one_used(
    target, examples, token_ids, tmp_path
):
    run = make_run("layers:1", target, examples, token_ids, tmp_path)
    run.go(lambda p: None, save_every=2)
    content = run.checkpoints.last.read_bytes()
    run.checkpoints.last.write_bytes(content[:-100])
    said = []
    again = make_run("layers:1", target, examples, token_ids, tmp_path, said)
    assert 0 < again.step < run.step
    assert "truncated" in said[0]
    assert "previous.safetensors" in said[0]
    again.go(lambda p: None)
    assert torch.equal(
        again.optimiser.tensors()["weight/norm.weight"],
        run.optimiser.tensors()["weight/norm.weight"],
    )
    for path in (run.checkpoints.last, run.checkpoints.previous):
        path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"truncated.*delete"):
        make_run("layers:1", target, examples, token_ids, tmp_path)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    Checkpoints(tmp_path, {"seed": 0}, print).save({"x": torch.zeros(1)}, {"step": 1})
    with pytest.raises(ConfigError, match="other settings"):
        Checkpoints(tmp_path, {"seed": 1}, print).load()
    assert Checkpoints(tmp_path / "none", {"seed": 1}, print).load() is None


def test_bad_settings():
    with pytest.raises(ValueError, match="epochs=0"):
        TrainSettings(epochs=0)
    with pytest.raises(ValueError, match="learning_rate=-1"):
        TrainSettings(learning_rate=-1)
    with pytest.raises(ValueError, match="expected eagle or layers:N"):
        Kind("layers:x")
    with pytest.raises(ValueError, match="31 layers for a target of 30"):
        spread(31, 30)
    assert spread(1, 30) == [0]
    assert spread(4, 30) == [0, 1, 28, 29]
    assert max(evaluation_steps(1000)) == 1000


# --- drafts and their cards ------------------------------------------------------------------


def test_a_draft_of_another_target_or_vocabulary_is_refused(target, loaded, token_ids, tmp_path):
    trainee = random_trainee("layers:1", target, token_ids)
    path = save(tmp_path, "layers:1", trainee, loaded, token_ids)
    load_trained(path, loaded)
    other = Loaded("other", tiny(4), loaded.tokenizer)
    with pytest.raises(ConfigError, match=r"was trained for tiny .* not for other"):
        load_trained(path, other)
    words = {f"v{i}": i for i in range(VOCAB)}
    foreign = Tokenizer(Backend(models.WordLevel(words, unk_token="v0")), frozenset({7}))
    with pytest.raises(ConfigError, match="vocabulary mismatch"):
        load_trained(path, Loaded("tiny", target, foreign))


def test_a_damaged_draft_is_refused(target, loaded, token_ids, tmp_path):
    trainee = random_trainee("eagle", target, token_ids)
    path = save(tmp_path, "eagle", trainee, loaded, token_ids)
    content, card = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    path.write_bytes(content[:-10])
    with pytest.raises(ConfigError, match="truncated"):
        load_trained(path, loaded)
    path.write_bytes(content)
    write_card(path, {**card, "kind": "layers:1"})
    with pytest.raises(ConfigError, match="not a draft that its card describes"):
        load_trained(path, loaded)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ConfigError, match="not a card"):
        load_trained(path, loaded)
    path.with_suffix(".json").unlink()
    with pytest.raises(MissingDataError, match="needs its card"):
        load_trained(path, loaded)


def test_the_fingerprint_does_not_depend_on_dtype_or_packing(target):
    half = tiny(3, dtype=torch.float64)
    assert fingerprint(half) == fingerprint(target)
    packed = tiny(3).pack()
    assert fingerprint(packed) == fingerprint(target)
    assert fingerprint(tiny(5)) != fingerprint(target)


def test_trainees_refuse_an_untied_target():
    untied = random_model(tiny_config(VOCAB, tied_embeddings=False), 0)
    with pytest.raises(ValueError, match="tied embeddings"):
        TeacherHead(untied)


def test_a_gradient_step_reduces_the_loss(target, examples, token_ids):
    for kind, cls in (("eagle", EagleTrainee), ("layers:2", LayersTrainee)):
        trainee = new_trainee(Kind(kind), target, token_ids, (2,), torch.float32, 0)
        assert isinstance(trainee, cls)
        losses = []
        for _ in range(3):
            loss = sum(divergence(s) for s in trainee.passes(examples[:6], 2))
            losses.append(float(loss.detach()))
            parameters = [p for p in trainee.module.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    p.sub_(0.05 * g)
        assert losses[0] > losses[1] > losses[2]
    assert random_head(EagleConfig.for_target(target.config, 5), 0).head.weight.shape == (5, 8)
