"""Settings."""

from __future__ import annotations

import pytest

import moai_fabric as moai


def test_settings_are_read_and_written_by_either_name() -> None:
    config = moai.Config({"MOAI_DEADLINE": 5}, transports="tcp")
    assert config["deadline"] == config["MOAI_DEADLINE"] == "5"
    assert config["transports"] == "tcp"
    config["insecure"] = True
    assert config["MOAI_INSECURE"] == "1"
    del config["insecure"]
    assert config["MOAI_INSECURE"] == "0"


def test_it_is_a_mapping_of_all_settings_with_their_help() -> None:
    config = moai.Config()
    assert len(config) == len(list(config)) == len(moai.Config.help())
    assert "MOAI_BIND" in config
    assert "listen" in moai.Config.help()["MOAI_BIND"]
    config["tcp_lanes"] = 2
    assert "MOAI_TCP_LANES" in repr(config) and "MOAI_BIND" not in repr(config)


@pytest.mark.parametrize("key", ["transprots", "MOAI_TRANSPROTS", "", "moai_bind"])
def test_an_unknown_setting_is_refused_by_name(key: str) -> None:
    with pytest.raises(moai.ConfigError) as error:
        moai.Config({key: "tcp"})
    assert error.value.field == f"MOAI_{key.removeprefix('MOAI_').upper()}"
    assert error.value.status_name == "MOAI_CONFIG"
    with pytest.raises(KeyError):
        moai.Config()[key]


@pytest.mark.parametrize(
    ("key", "value"),
    [("deadline", "soon"), ("bind", "nowhere"), ("staging_bytes", 1), ("transports", "pigeon"), ("deadline", None), ("bind", b"127.0.0.1:0")],
)
def test_a_value_that_cannot_be_is_refused_and_changes_nothing(key: str, value: object) -> None:
    config = moai.Config()
    before = dict(config)
    with pytest.raises(moai.ConfigError) as error:
        config[key] = value  # type: ignore[assignment]
    assert key.upper() in (error.value.field or "").upper()
    assert dict(config) == before


def test_settings_that_need_one_another_are_checked_together() -> None:
    config = moai.Config(tls_cert="/nowhere/cert.pem")
    with pytest.raises(moai.ConfigError):
        config.check()


def test_the_environment_is_read_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    # Python's os.environ reaches the library through putenv.
    monkeypatch.setenv("MOAI_DEADLINE", "9")
    assert os.environ["MOAI_DEADLINE"] == "9"
    assert moai.Config()["deadline"] == "60"
    assert moai.Config.from_env()["deadline"] == "9"
    monkeypatch.setenv("MOAI_DEADLIEN", "9")
    with pytest.raises(moai.ConfigError) as error:
        moai.Config.from_env()
    assert "MOAI_DEADLIEN" in str(error.value)


def test_text_with_a_zero_in_it_is_refused() -> None:
    with pytest.raises(moai.ConfigError):
        moai.Config(bind="127.0.0.1:0\0junk")
    with pytest.raises(moai.ConfigError):
        moai.Config(bind="\ud800")
