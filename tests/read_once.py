"""Hydra reads a file of a configuration once a process, and again when it changes: half of a composition's time."""

import os
import pickle

from hydra._internal.config_repository import ConfigRepository

_read, _kept = ConfigRepository.load_config, {}


def _read_once(repository: ConfigRepository, config_path: str) -> object:
    """A copy of its own of what Hydra reads, as Hydra changes it."""
    key = [config_path]
    for source in repository.sources:
        key += [source.scheme(), source.path]
        path = os.path.join(source.path, config_path.removesuffix(".yaml") + ".yaml")
        if source.scheme() == "file" and os.path.isfile(path):
            key += [os.stat(path).st_mtime_ns, os.path.getsize(path)]
    if tuple(key) not in _kept:
        _kept[tuple(key)] = pickle.dumps(_read(repository, config_path))
    return pickle.loads(_kept[tuple(key)])


ConfigRepository.load_config = _read_once
