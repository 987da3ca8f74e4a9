"""The catalogue's rows by name, read from the TOML files beside this module.

Each file is read once, when something in it is first asked for. Rows are checked strictly:
an unknown key, a missing source or an alias used twice is an error, so that a slip in a
row shows up when the row is written.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from specsim.catalogue.config_fields import ConfigFields
from specsim.catalogue.hf_config import load_config, model_from_fields
from specsim.catalogue.rows import acceptance_from_row, gpu_from_row, runtime_from_row
from specsim.catalogue.specs import AcceptancePreset, GpuSpec, ModelSpec, RuntimeSpec
from specsim.errors import ConfigError, UnknownNameError

_DIRECTORY = Path(__file__).parent
_MODEL_KEYS = {"aliases", "family", "like", "config", "source", "notes"}

Row = Mapping[str, Any]


@cache
def _rows(file: str) -> dict[str, Row]:
    """The rows of one file, by name."""
    with (_DIRECTORY / file).open("rb") as stream:
        return tomllib.load(stream)


@cache
def _names(file: str) -> dict[str, str]:
    """Lower-case name or alias → row name.

    Raises:
        ConfigError: if two rows answer to one name.
    """
    names: dict[str, str] = {}
    for name, row in _rows(file).items():
        for alias in (name, *row.get("aliases", ())):
            if names.setdefault(alias.lower(), name) != name:
                raise ConfigError(f"{file}: {alias!r} names both {names[alias.lower()]} and {name}")
    return names


def _lookup(kind: str, file: str, name: str) -> str:
    names = _names(file)
    found = names.get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.strip().lower()[:100], names, n=1, cutoff=0.5)
        raise UnknownNameError(kind, name, names if near else _rows(file))
    return found


def model(name: str | os.PathLike[str]) -> ModelSpec:
    """A model of the catalogue by name or Hugging Face id, or from a `config.json`.

    A name that ends in `.json`, or that contains a path separator and exists, is read as a
    file (or a directory that holds a `config.json`).

    >>> model("llama-3.1-8b").num_layers
    32

    Raises:
        UnknownNameError: if the catalogue does not have it; suggests the nearest.
        ConfigError: if a file cannot be read as the configuration of a supported model.
    """
    text = os.fspath(name)
    is_path = os.sep in text and Path(text).exists()
    if text.lower().endswith(".json") or is_path or isinstance(name, os.PathLike):
        return load_config(text)
    return _model(_lookup("model", "models.toml", text))


@cache
def _model(name: str) -> ModelSpec:
    row = _rows("models.toml")[name]
    unknown = set(row) - _MODEL_KEYS
    if unknown:
        raise ConfigError(f"models.toml: {name}: unknown key {sorted(unknown)[0]!r}")
    if not row.get("source"):
        raise ConfigError(f"models.toml: {name}: source is missing")
    fields = ConfigFields(_config(name), f"models.toml: {name}")
    spec = model_from_fields(fields, name=name, family=row.get("family", ""))
    if fields.unread():
        raise ConfigError(f"{fields.where}: config key {fields.unread()[0]!r} is never read")
    return replace(spec, source=row["source"])


def _config(name: str) -> dict[str, Any]:
    """A row's configuration, laid over that of the row it is `like`."""
    rows = _rows("models.toml")
    row = rows[name]
    parent = row.get("like")
    if parent is None:
        return dict(row.get("config", {}))
    if parent not in rows or "like" in rows[parent]:
        raise ConfigError(f"models.toml: {name}: like = {parent!r}: expected a row with a config")
    return {**rows[parent].get("config", {}), **row.get("config", {})}


def gpu(name: str) -> GpuSpec:
    """A GPU (or TPU) by name or alias: `h100`, `h100-sxm`, `h100-sxm-80gb`.

    >>> gpu("h100-sxm").name
    'h100-sxm-80gb'

    Raises:
        UnknownNameError: if the catalogue does not have it; suggests the nearest.
    """
    return _gpu(_lookup("GPU", "gpus.toml", name))


@cache
def _gpu(name: str) -> GpuSpec:
    constants = _constants()
    return gpu_from_row(name, _rows("gpus.toml")[name], constants.get(name, {}))


@cache
def _constants() -> dict[str, Row]:
    """Efficiencies fitted to measured kernels, by GPU name; empty if there are none.

    Raises:
        ConfigError: if they name a GPU that the catalogue does not have.
    """
    if not (_DIRECTORY / "constants.toml").exists():
        return {}
    constants = _rows("constants.toml")
    for name in constants:
        if name not in _rows("gpus.toml"):
            raise ConfigError(f"constants.toml: {name!r} is not a GPU of gpus.toml")
    return constants


def runtime(name: str) -> RuntimeSpec:
    """A serving runtime by name or alias; `vllm` resolves to a named version.

    Raises:
        UnknownNameError: if the catalogue does not have it; suggests the nearest.
    """
    return _runtime(_lookup("runtime", "runtimes.toml", name))


@cache
def _runtime(name: str) -> RuntimeSpec:
    return runtime_from_row(name, _rows("runtimes.toml")[name])


def acceptance_preset(name: str) -> AcceptancePreset:
    """A published acceptance figure by name: `code`, `factual-qa`, `creative`, …

    Raises:
        UnknownNameError: if the catalogue does not have it; suggests the nearest.
    """
    return _acceptance(_lookup("acceptance preset", "acceptance.toml", name))


@cache
def _acceptance(name: str) -> AcceptancePreset:
    return acceptance_from_row(name, _rows("acceptance.toml")[name])


def list_models() -> tuple[str, ...]:
    """Names of all models, in the catalogue's order."""
    return tuple(_rows("models.toml"))


def list_gpus() -> tuple[str, ...]:
    """Names of all GPUs, in the catalogue's order."""
    return tuple(_rows("gpus.toml"))


def list_runtimes() -> tuple[str, ...]:
    """Names of all runtimes, in the catalogue's order."""
    return tuple(_rows("runtimes.toml"))


def list_acceptance_presets() -> tuple[str, ...]:
    """Names of all acceptance presets, in the catalogue's order."""
    return tuple(_rows("acceptance.toml"))


def aliases(name: str, *, kind: str) -> tuple[str, ...]:
    """Other names of a row; `kind` is "models", "gpus", "runtimes" or "acceptance"."""
    row = _rows(f"{kind}.toml")[name]
    return tuple(row.get("aliases", ()))
