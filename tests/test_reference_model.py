"""The transformer and its cache: equal to Hugging Face's, and equal to recomputation."""

import subprocess
import sys

import pytest
import torch
from test_reference_helpers import fresh_logits, tiny_config, tiny_model

from reference.cache import TreeRows, make_batch
from reference.draft.tree import Draft
from reference.model import Linear, can_pack, random_model
from reference.weights import _packaged_file, load

TOLERANCE = 1e-4
SHAPE = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama-2": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen-2": ("Qwen2", {"tie_word_embeddings": True, "use_sliding_window": False}),
    "qwen-3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": False}),
}


def hugging_face_model(family):
    transformers = pytest.importorskip("transformers")
    name, changes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **changes})
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name:  # zeros and ones would hide a mistake
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    """Every supported family, through a safetensors directory, in float32 to 1e-4."""
    theirs = hugging_face_model(family)
    theirs.save_pretrained(tmp_path)
    ours = load(str(tmp_path)).model
    tokens = torch.arange(40) * 37 % SHAPE["vocab_size"]
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    difference = (fresh_logits(ours, tokens.tolist()) - expected).abs().max()
    assert expected.std() > 0.1
    assert float(difference) <= TOLERANCE


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}


def write_gguf(path, architecture, model):
    """A tiny GGUF file as a converter would write it (llama permutes q and k rows)."""
    import gguf

    c = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if "qwen" in architecture else "smollm")
    writer.add_token_list(["t", "1", "t1", *(f"x{i}" for i in range(3, c.vocab_size))])
    writer.add_token_merges(["t 1"])
    for name, tensor in model.state_dict().items():
        value, parts = tensor.numpy(), name.split(".")
        if architecture == "llama" and parts[-2] in ("q_proj", "k_proj"):
            heads = c.num_attention_heads if parts[-2] == "q_proj" else c.num_key_value_heads
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        block = f"blk.{parts[2]}." if "layers" in parts else ""
        if name != "lm_head.weight" or not c.tie_word_embeddings:
            writer.add_tensor(f"{block}{GGUF_NAMES[parts[-2]]}.{parts[-1]}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("family", "architecture"), [("smollm2", "llama"), ("qwen-2", "qwen2"), ("qwen-3", "qwen3")]
)
def test_gguf_logits_equal_transformers(family, architecture, tmp_path):
    """The same through a GGUF file of each architecture that is read."""
    pytest.importorskip("gguf")
    theirs = hugging_face_model(family)
    write_gguf(tmp_path / "tiny.gguf", architecture, theirs)
    ours = load(str(tmp_path / "tiny.gguf")).model
    tokens = list(range(30))
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert float((fresh_logits(ours, tokens) - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_packed_weights_change_nothing(dtype, tolerance, keep):
    """oneDNN's layout gives the plain product to rounding (bfloat16: 8 bits), at any width."""
    linear = Linear(48, 64, bias=True)
    torch.nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    linear = linear.to(getattr(torch, dtype))
    inputs = [torch.randn(n, 48, generator=torch.Generator().manual_seed(n)) for n in (1, 5, 9)]
    with torch.inference_mode():
        before = [linear(x.to(linear.weight)) for x in inputs]
        linear.pack(keep=keep)
        after = [linear(x.to(before[0])) for x in inputs]
    assert (linear.packed is not None) == can_pack(torch.empty(2, 2, dtype=before[0].dtype))
    for plain, packed in zip(before, after, strict=True):
        torch.testing.assert_close(plain, packed, atol=tolerance, rtol=tolerance)


def test_packing_keeps_one_copy_of_a_float32_matrix():
    """A tied output matrix of 49k rows would otherwise be a fifth of SmolLM2 once more."""
    if not can_pack(torch.empty(2, 2)):
        pytest.skip("oneDNN is not available")
    shared, own = Linear(48, 64), Linear(48, 64)
    shared.pack(keep=True)
    own.pack()
    assert shared.packed is not None
    assert shared.packed.data_ptr() == shared.weight.data_ptr()
    assert own.weight.numel() == 0


def test_laying_out_a_model_is_cheap():
    """Some operations on the meta device import sympy: a second, and 60 MB while decoding."""
    code = (
        "import sys, torch\n"
        "from reference.model import Model, ModelConfig\n"
        "c = ModelConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=2,\n"
        "    num_kv_heads=1, head_dim=4, intermediate_size=8)\n"
        "with torch.device('meta'): model = Model(c)\n"
        "assert model.rope.is_meta\n"
        "sys.exit('sympy' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"sliding_window": 4}])
def test_incremental_ragged_batches_equal_one_pass(changes):
    """Rows of different lengths, fed in uneven pieces, give the logits of whole passes."""
    model = tiny_model(11, seed=2, **changes)
    rows = [[1, 5, 3, 9, 2, 7, 4, 10], [8, 0, 6], [2, 2, 7, 1, 0]]
    pieces = [[3, 1, 4], [1, 2, 0], [0, 4, 1]]
    cache = model.new_cache(3, 16)
    got = [[], [], []]
    for i in range(3):
        starts = [sum(p[:i]) for p in pieces]
        new = [r[s : s + p[i]] for r, s, p in zip(rows, starts, pieces, strict=True)]
        lines = model(make_batch(new, cache), cache).logits.split([len(x) for x in new])
        for row, line in zip(got, lines, strict=True):
            row.append(line)
    for tokens, lines in zip(rows, got, strict=True):
        torch.testing.assert_close(torch.cat(lines), fresh_logits(model, tokens))


def test_rolled_back_slots_are_never_seen():
    """Garbage left beyond a row's length has no effect."""
    model = tiny_model(11, seed=2)
    cache = model.new_cache(2, 16)
    model(make_batch([[1, 2, 3, 4], [5, 6]], cache), cache)
    cache.rollback(0, 2)
    cache.rollback(1, 1)
    out = model(make_batch([[7], [8]], cache), cache).logits
    torch.testing.assert_close(out[0], fresh_logits(model, [1, 2, 7])[-1])
    torch.testing.assert_close(out[1], fresh_logits(model, [5, 8])[-1])


def test_static_shapes_equal_dynamic_ones():
    """Attention over all slots with a mask: what a CUDA graph would replay."""
    model = tiny_model(11, seed=2)
    cache = model.new_cache(1, 16)
    out = model(make_batch([[1, 2, 3]], cache, key_length=16), cache).logits
    torch.testing.assert_close(out, fresh_logits(model, [1, 2, 3]))


def test_tree_logits_equal_each_path_recomputed():
    """Property 12: the tree mask and positions give every node its own path's logits."""
    model = tiny_model(11, seed=2)
    draft = Draft()
    for parent, token in [(-1, 4), (-1, 9), (0, 1), (0, 7), (1, 3), (3, 2)]:
        draft.add(parent, token)
    cache = model.new_cache(1, 16)
    model(make_batch([[5, 6]], cache), cache)
    tree = draft.target_rows()
    assert isinstance(tree, TreeRows)
    out = model(make_batch([[8, *draft.tokens]], cache, trees=[tree]), cache).logits
    for node in range(-1, len(draft.tokens)):
        path, at = [], node
        while at >= 0:
            path.insert(0, draft.tokens[at])
            at = draft.parents[at]
        torch.testing.assert_close(out[node + 1], fresh_logits(model, [5, 6, 8, *path])[-1])


def test_kept_path_equals_recompute():
    """After a tree step the accepted path is contiguous and decoding goes on from it."""
    model = tiny_model(11, seed=2)
    draft = Draft()
    for parent, token in [(-1, 4), (-1, 9), (1, 3)]:
        draft.add(parent, token)
    cache = model.new_cache(1, 16)
    model(make_batch([[5]], cache), cache)
    model(make_batch([[6, *draft.tokens]], cache, trees=[draft.target_rows()]), cache)
    cache.keep_path(0, 2, [1, 2])
    assert cache.lengths == [4]
    out = model(make_batch([[10]], cache), cache).logits
    torch.testing.assert_close(out[0], fresh_logits(model, [5, 6, 9, 3, 10])[-1])


def test_early_exit_stops_after_n_layers():
    """num_layers = 1 is the model without its other layers."""
    model, short = tiny_model(11, seed=2), tiny_model(11, seed=2)
    short.layers = short.layers[:1]
    short.config = tiny_config(11, num_layers=1)
    cache = model.new_cache(1, 8)
    out = model(make_batch([[1, 2, 3]], cache), cache, num_layers=1).logits
    torch.testing.assert_close(out, fresh_logits(short, [1, 2, 3]))


def test_batch_that_does_not_fit():
    model = tiny_model()
    cache = model.new_cache(1, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit in a cache of 4"):
        make_batch([[0] * 5], cache)
    with pytest.raises(ValueError, match="at least one token"):
        make_batch([[]], cache)
    with pytest.raises(ValueError, match="65 slots exceed the model's 64"):
        model.new_cache(1, 65)


def test_random_model_leaves_the_global_state_alone():
    """Property 19, for building models."""
    before = torch.get_rng_state()
    random_model(tiny_config(), 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf")
    return load("smollm2-135m")


def hugging_face_smollm2():
    """transformers' Llama filled from the GGUF by a reading of its own, not by ours."""
    transformers = pytest.importorskip("transformers")
    gguf = pytest.importorskip("gguf")
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
    )  # fmt: skip
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    reader = gguf.GGUFReader(_packaged_file("smollm2-135m"))
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        value = values[names.get_name(name, try_suffixes=(".weight",))]
        if "q_proj" in name or "k_proj" in name:  # undo llama.cpp's permutation of rows
            heads = value.shape[0] // 64
            value = value.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(value.shape)
        parameter.data = torch.from_numpy(value.copy())
    return model


def test_smollm2_logits_equal_transformers(smollm2):
    """The packaged GGUF on code and prose: 1e-4 with the same matrix product as theirs.

    oneDNN's packed product adds in another order and is as far from float64 as from theirs:
    below 1e-4 here, 2e-4 allowed.
    """
    text = "def add(a, b):\n    return a + b\n\nThe capital of France is"
    ids = smollm2.tokenizer.encode(text)
    with torch.no_grad():
        expected = hugging_face_smollm2()(torch.tensor([ids])).logits[0]
    plain = load("smollm2-135m", pack=False).model
    assert float((fresh_logits(plain, ids) - expected).abs().max()) <= TOLERANCE
    assert float((fresh_logits(smollm2.model, ids) - expected).abs().max()) <= 2 * TOLERANCE


def test_smollm2_tokenizer_round_trip(smollm2):
    """Byte-level: any text survives, digits stand alone, chat layout uses special tokens."""
    tokenizer = smollm2.tokenizer
    text = "Counting 1234 naïve  spaces\n\tand\u2014tabs: 'it's' 3.14 日本"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234")) == 4
    assert tokenizer.chat("hi")[0] == 1
    assert tokenizer.eos == {2}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_logits_equal_cpu():
    model = tiny_model(11, seed=2)
    expected = fresh_logits(model, [1, 2, 3, 4])
    torch.testing.assert_close(fresh_logits(model.cuda(), [1, 2, 3, 4]).cpu(), expected)
