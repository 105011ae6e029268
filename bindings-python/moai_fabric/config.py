"""Settings of a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Union

from ._native import call, lib, new, text_of, utf8
from ._object import Object
from .errors import ConfigError

__all__ = ["Config", "Setting"]

Setting = Union[str, int, float, bool]
"""What a setting may be set to; truth values are ``1`` and ``0``."""


class Config(MutableMapping[str, str]):
    """Settings: transports, addresses, security, limits. Each has a default.

    Keys are the names of the environment's variables (``MOAI_BIND``), or their short form (``bind``); the book's chapter
    "Configuration" has all of them. Iteration goes over all settings under their long names; deleting one makes it the default again.
    The environment is looked at by :meth:`from_env` only.

    >>> config = Config(transports="tcp", deadline=5)
    >>> config["MOAI_DEADLINE"]
    '5'

    Raises:
        ConfigError: A setting is unknown (``field`` names it), or its value cannot be, by itself or together with others (:meth:`check`).
    """

    def __init__(self, settings: Union[Mapping[str, Setting], None] = None, /, **more: Setting) -> None:
        self._object = Object(new(lib.moai_config_new), lib.moai_config_free)
        for given in (settings or {}), more:
            for key, value in given.items():
                self[key] = value

    @classmethod
    def from_env(cls) -> Config:
        """As the environment has it. A ``MOAI_`` variable that nobody knows is a :class:`ConfigError`."""
        config = cls.__new__(cls)
        config._object = Object(new(lib.moai_config_from_env), lib.moai_config_free)
        return config

    def __getitem__(self, key: str) -> str:
        try:
            return text_of(lib.moai_config_get, self._object.pointer, _key(key))
        except ConfigError as error:
            raise KeyError(key) from error

    def __setitem__(self, key: str, value: Setting) -> None:
        name = _key(key)
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, (str, int, float)):
            wrong = type(value).__name__
            raise ConfigError(f"{key}: {value!r} is of type {wrong}, but text or a number is expected", field=key, ours=repr(value))
        call(lib.moai_config_set, self._object.pointer, name, utf8(str(value), key, ConfigError))

    def __delitem__(self, key: str) -> None:
        default = Config()
        try:
            self[key] = default[key]
        except KeyError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(_keys())

    def __len__(self) -> int:
        return len(_keys())

    def __repr__(self) -> str:
        default = Config()
        changed = {key: value for key, value in self.items() if value != default[key]}
        return f"Config({changed!r})"

    def check(self) -> None:
        """Checks all settings together, as an engine does when it starts: certificates need their keys."""
        call(lib.moai_config_check, self._object.pointer)

    @staticmethod
    def help() -> dict[str, str]:
        """Every setting, and what it does and costs."""
        return {key: lib.moai_config_key_help(i).decode() for i, key in enumerate(_keys())}


def _keys() -> list[str]:
    return [lib.moai_config_key(i).decode() for i in range(lib.moai_config_key_count())]


def _key(key: object) -> bytes:
    """The variable's name of a setting."""
    name = utf8(key, "setting", ConfigError)
    return name if name.startswith(b"MOAI_") else b"MOAI_" + name.upper()
