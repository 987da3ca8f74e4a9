"""Text to token ids and back, from tokenizer.json or from a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from specsim.errors import ConfigError

#: How text is cut before byte-pair merging, by GGUF's name for it.
_DIGITS_THEN_BYTES = ("smollm",)
_REGEX = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_CONTROL = 3  # GGUF's token type of special tokens


@dataclass(frozen=True)
class Tokenizer:
    """Encodes, decodes, and knows which tokens end a sequence and how a chat is laid out."""

    backend: tokenizers.Tokenizer
    eos: frozenset[int]
    bos: int | None = None  # put before plain text
    chat_template: str | None = None
    bos_token: str = ""  # what a chat template may write itself
    eos_token: str = ""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, a beginning-of-sequence token first if the model wants one."""
        ids = list(self.backend.encode(text, add_special_tokens=False).ids)
        return ids if self.bos is None else [self.bos, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def chat(self, message: str) -> list[int]:
        """Token ids of one user message in the model's chat layout; plain text without one.

        The template comes from the model's file, so it runs in a sandbox, with what Hugging
        Face's renderer offers to it.

        Raises:
            ConfigError: when the template does not render.
        """
        if self.chat_template is None:
            return self.encode(message)
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            text = environment.from_string(self.chat_template).render(
                messages=[{"role": "user", "content": message}],
                add_generation_prompt=True,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
        except Exception as error:  # a template is a program: any error may surface
            raise ConfigError(f"the model's chat template does not render: {error}") from None
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether every id means the same token in both."""
        return bool(self.backend.get_vocab() == other.backend.get_vocab())


def _refuse(message: str) -> None:
    raise ValueError(message)


def gguf_tokenizer(fields: dict[str, Any], where: str) -> Tokenizer:
    """Byte-pair tokenizer from GGUF metadata.

    Raises:
        ConfigError: for a tokenizer of another kind (SentencePiece), or an unknown splitter.
    """

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    if value("model") != "gpt2":
        raise ConfigError(f"{where}: tokenizer {value('model')!r} is not supported; expected gpt2")
    tokens = value("tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in value("merges", [])]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the Rust side raises bare Exception
        raise ConfigError(f"{where}: its tokenizer is not consistent ({error})") from None
    backend.pre_tokenizer = _splitter(str(value("pre", "")), where)
    backend.decoder = decoders.ByteLevel()
    kinds = value("token_type", [])
    special = [t for t, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
    backend.add_special_tokens(special)
    first, last = value("bos_token_id"), value("eos_token_id")
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        frozenset({last, value("eot_token_id")} - {None}),
        first if value("add_bos_token", False) else None,
        None if template is None else template.contents(),
        "" if first is None else str(backend.id_to_token(first) or ""),
        "" if last is None else str(backend.id_to_token(last) or ""),
    )


def _splitter(name: str, where: str) -> pre_tokenizers.PreTokenizer:
    if name in _DIGITS_THEN_BYTES:
        first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif name in _REGEX:
        first = pre_tokenizers.Split(Regex(_REGEX[name]), behavior="isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        known = ", ".join((*_DIGITS_THEN_BYTES, *_REGEX))
        raise ConfigError(f"{where}: text splitter {name!r} is not supported; expected {known}")
    return pre_tokenizers.Sequence([first, last])


def directory_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory, or None if it has no tokenizer.json.

    Raises:
        ConfigError: when a file is there but cannot be read.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ConfigError(f"{file}: not a tokenizer ({error})") from None
    settings = _optional_json(path / "tokenizer_config.json")
    config = {
        **_optional_json(path / "config.json"),
        **_optional_json(path / "generation_config.json"),
    }
    eos = config.get("eos_token_id")
    ids = frozenset(eos if isinstance(eos, list) else [eos] if isinstance(eos, int) else [])
    bos_token, eos_token = (_token_text(settings.get(key)) for key in ("bos_token", "eos_token"))
    return Tokenizer(
        backend, ids, _bos(backend, settings, config), _template(path, settings), bos_token,
        eos_token,
    )  # fmt: skip


def _token_text(value: Any) -> str:
    """A special token as tokenizer_config.json has it: a string, or an object around one."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _bos(
    backend: tokenizers.Tokenizer, settings: dict[str, Any], config: dict[str, Any]
) -> int | None:
    """The token before plain text: as tokenizer_config.json says, or else tokenizer.json,
    where Llama 3 keeps it (its post-processor puts it before an empty text as well)."""
    if "add_bos_token" in settings:
        token = backend.token_to_id(_token_text(settings.get("bos_token")))
        bos = config.get("bos_token_id") if token is None else token
        return bos if settings["add_bos_token"] and isinstance(bos, int) else None
    added = backend.encode("").ids
    first = _token_text(settings.get("bos_token"))
    return added[0] if added and backend.id_to_token(added[0]) == first else None


def _template(path: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own (newer models), or in tokenizer_config.json,
    alone or as the one named "default" of several."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: not a template ({error})") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    return value if isinstance(value, dict) else {}
