"""Settings: what wins, and what is said of a wrong one."""

import pytest

from service.settings import Settings, SettingsError, load_settings

SECONDS = ("BODY_TIMEOUT", "DRAIN", "HANG", "KEEP_ALIVE", "MODEL_POLL", "QUEUE", "REQUEST_TIMEOUT")
NO_COLLECTORS = ("foo", "collector:4318", "http://", "grpc://collector:4317", "http://a b", "http://collector/?a=1")


def test_defaults_are_those_of_the_documentation() -> None:
    settings = load_settings({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_body_bytes == 64 * 1024 * 1024
    assert (settings.max_pixels, settings.max_images, settings.min_side) == (50_000_000, 1024, 4)
    assert settings.default_model("classify") == "equivae-mnist"
    assert settings.default_model("transform") == settings.default_model("canonicalize") == "mcevae-mnist-se2"
    assert settings.default_model("augment") == "symmetry-mnist"


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_PORT", "9000")
    assert load_settings({}).port == 9000
    assert load_settings({"port": "9001"}).port == 9001


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EQUIPOISE_PORT", "abc", "EQUIPOISE_PORT=abc: Input should be a valid integer"),
        ("EQUIPOISE_PORT", "70000", "EQUIPOISE_PORT=70000: Input should be less than or equal to 65535"),
        ("EQUIPOISE_PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
        ("EQUIPOISE_LOG_FORMAT", "xml", "EQUIPOISE_LOG_FORMAT=xml: Input should be 'plain' or 'json'"),
        ("EQUIPOISE_QUEUE_IMAGES", "10", "queue_images (10) must be at least max_images (1024)"),
        ("EQUIPOISE_MAX_PIXELS", "178956970", "times max_pixels"),
        ("EQUIPOISE_MAX_PIXELS", "178956971", "less than or equal to 178956970"),
        ("EQUIPOISE_MIN_SIDE", "8000", "min_side (8000) squared must be at most max_pixels (50000000)"),
        ("EQUIPOISE_MAX_CONNECTIONS", "1000001", "less than or equal to 1000000"),
        ("EQUIPOISE_INFERENCE_THREADS", "257", "less than or equal to 256"),
        ("EQUIPOISE_GPU_MEMORY_BYTES", f"{10**24}", "less than or equal to 1099511627776"),
        ("EQUIPOISE_BODY_TIMEOUT_SECONDS", "0", "greater than or equal to 0.001"),
        ("EQUIPOISE_REQUEST_TIMEOUT_SECONDS", "1e-9", "greater than or equal to 0.001"),
        ("EQUIPOISE_HANG_SECONDS", "0.5", "EQUIPOISE_HANG_SECONDS=0.5: Input should be 0 (off) or at least 1"),
        ("EQUIPOISE_MODEL_POLL_SECONDS", "1e-9", "0 (off) or at least 0.01"),
        *((f"EQUIPOISE_{name}_SECONDS", "86401", "less than or equal to 86400") for name in SECONDS),
        ("EQUIPOISE_INLINE_MILLISECONDS", "60001", "less than or equal to 60000"),
        ("EQUIPOISE_REQUEST_TIMEOUT_SECONDS", "inf", "EQUIPOISE_REQUEST_TIMEOUT_SECONDS=inf: Input should be a finite"),
        ("EQUIPOISE_INLINE_MILLISECONDS", "nan", "Input should be a finite number"),
        ("EQUIPOISE_DEVICE", "tpu", "EQUIPOISE_DEVICE=tpu: a device is auto, cpu, cuda, or cuda with the numbers"),
        ("EQUIPOISE_CORS_ORIGINS", "foo bar", "EQUIPOISE_CORS_ORIGINS=foo bar: 'foo bar' is no origin"),
        ("EQUIPOISE_CORS_ORIGINS", "https://a.example,", "'' is no origin"),
        ("EQUIPOISE_CORS_ORIGINS", "https://a.example/", "without a path"),
        ("EQUIPOISE_CORS_ORIGINS", "https://A.example", "in lower case"),
        *(("EQUIPOISE_OTEL_ENDPOINT", url, f"={url}: a collector is http://host:port") for url in NO_COLLECTORS),
        ("EQUIPOISE_WAIT_FOR_MODELS", "perhaps", "valid boolean"),
        ("EQUIPOISE_PROT", "8000", "EQUIPOISE_PROT is no setting, did you mean EQUIPOISE_PORT?"),
        ("EQUIPOISE_SERVICE_HOST", "10.0.0.1", "enableServiceLinks: false"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        load_settings({})
    assert said in str(error.value)


def test_origins_of_every_kind_are_taken() -> None:
    origins = "*, http://localhost:8080,https://a-b.example , http://[::1]:80, chrome-extension://abcdef"
    assert load_settings({"cors_origins": origins}).cors_origins == origins
    assert load_settings({"cors_origins": ""}).cors_origins == ""


@pytest.mark.parametrize("url", ["http://collector:4318", "https://me:it@Host.example/otlp/", "http://[::1]:4318", ""])
def test_collectors_of_every_kind_are_taken(url: str) -> None:
    assert load_settings({"otel_endpoint": url}).otel_endpoint == url


def test_what_may_be_off_is_off_at_zero() -> None:
    settings = load_settings({"hang_seconds": "0", "model_poll_seconds": "0", "queue_seconds": "0"})
    assert (settings.hang_seconds, settings.model_poll_seconds, settings.queue_seconds) == (0, 0, 0)


def test_the_training_packages_variables_are_none_of_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_TRAINING_DATA", "/data")
    assert load_settings({}).port == 8000


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(SettingsError, match=r"--max-batch=0: Input should be greater than or equal to 1"):
        load_settings({"max_batch": "0"})


def test_waiting_for_models_without_looking_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs model_poll_seconds above 0"):
        load_settings({"wait_for_models": "true", "model_poll_seconds": "0"})


def test_several_wrong_settings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_NOPE", "1")
    with pytest.raises(SettingsError) as error:
        load_settings({"port": "x", "max_batch": "y"})
    assert len(str(error.value).splitlines()) == 3


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        if name.startswith(("max_", "min_", "queue_")) or name.endswith(("seconds", "milliseconds", "bytes")):
            units = ("bytes", "pixels", "Pixels", "pictures", "seconds", "milliseconds", "long")
            assert any(unit in field.description for unit in units), name
