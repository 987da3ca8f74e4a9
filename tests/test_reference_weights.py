"""Loading models: what is refused, and texts as Hugging Face lays them out."""

import json

import pytest
import tokenizers
from test_reference_helpers import WORDS, tiny_directory

from reference.gguf_weights import open_gguf
from reference.weights import load
from specsim.errors import ConfigError

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% if m.role != 'user' %}{{ raise_exception('users only') }}{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}b{% endif %}"
)


def test_quantised_safetensors_are_refused(tmp_path):
    """Read without their scales, 8-bit weights would load and decode nonsense."""
    config = tiny_directory(tmp_path) / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ConfigError, match=r"config\.json: quantization_config"):
        load(str(tmp_path))


@pytest.mark.parametrize("shards", [1, 3])
def test_sharded_weights_and_a_missing_shard(tmp_path, shards):
    """Tensors are found in whichever file holds them; a lost shard is named by its tensor."""
    from safetensors.torch import load_file, save_file

    whole = load(str(tiny_directory(tmp_path))).model.state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for i in range(shards):
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, tmp_path / f"model-{i}.safetensors")
    for name, tensor in load(str(tmp_path)).model.state_dict().items():
        assert tensor.equal(whole[name])
    (tmp_path / f"model-{shards - 1}.safetensors").unlink()
    with pytest.raises(Exception, match=r"is missing|no \*\.safetensors"):
        load(str(tmp_path))


def write_gguf(path, **changes):
    """A GGUF file's metadata without tensors, one key changed."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    numbers = {
        "block_count": 1, "context_length": 16, "embedding_length": 8, "feed_forward_length": 12,
        "attention.head_count": 2, "attention.head_count_kv": 1,
    }  # fmt: skip
    for key, value in {**numbers, **changes}.items():
        if isinstance(value, int):
            writer.add_uint32(f"llama.{key}", value)
        else:
            writer.add_array(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"attention.head_count": 0},
        {"attention.head_count_kv": 0},
        {"attention.head_count_kv": [1, 2]},
        {"embedding_length": 0},
    ],
)
def test_a_gguf_file_of_impossible_shapes_is_refused(tmp_path, changes):
    """Zero heads, or another number in each layer: one error that names the file."""
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "bad.gguf", **changes)
    with pytest.raises(ConfigError, match=r"bad\.gguf: "):
        open_gguf(tmp_path / "bad.gguf", "bad")


def test_a_gguf_tensor_that_cannot_be_dequantised_is_refused(tmp_path, monkeypatch):
    import gguf.quants

    def unknown(data, kind):
        raise NotImplementedError("Q9_Z")

    monkeypatch.setattr(gguf.quants, "dequantize", unknown)
    from reference.weights import _packaged_file

    source = open_gguf(_packaged_file("smollm2-135m"), "smollm2")
    with pytest.raises(ConfigError, match=r"cannot read model\.norm\.weight \(Q9_Z\)"):
        source.get("model.norm.weight")


def llama3_style(path, *, inside: bool):
    """A directory whose tokenizer.json puts <bos> first, and whose template writes it itself."""
    vocabulary = ("<bos>", *WORDS[1:])
    tiny_directory(path, vocabulary)
    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    backend.add_special_tokens(["<bos>", "."])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    backend.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>",
        "eos_token": {"content": ".", "__type": "AddedToken"},
    }  # fmt: skip
    if inside:
        named = [{"name": "tool_use", "template": "z"}, {"name": "default", "template": CHAT}]
        settings["chat_template"] = named
    else:
        (path / "chat_template.jinja").write_text(CHAT)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("inside", [False, True])
def test_text_and_chat_equal_transformers(tmp_path, inside):
    """A first token that only tokenizer.json knows of; the template in either place."""
    transformers = pytest.importorskip("transformers")
    llama3_style(tmp_path, inside=inside)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = load(str(tmp_path)).tokenizer
    assert ours.encode("abc") == theirs("abc")["input_ids"] == [0, 2, 3, 4]
    message = [{"role": "user", "content": "abc"}]
    text = theirs.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert text == "<bos>abc.b"
    assert ours.chat("abc") == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages + 1 }}", "can only concatenate"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_that_fails_is_one_error(tmp_path, template, message):
    (tiny_directory(tmp_path) / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=f"chat template does not render: .*{message}"):
        load(str(tmp_path)).tokenizer.chat("a")
