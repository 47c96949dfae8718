"""Settings of the server: where values come from, which are allowed, and how a bad one is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tuili.errors import InvalidRequestError
from tuili.server.settings import foreign_flags
from tuili.server.settings.serve_settings import ServeSettings, all_settings
from tuili.server.settings.setting_kinds import Many
from tuili.server.settings.settings_sources import Resolved, resolve


def of(**flags: Any) -> ServeSettings:
    return resolve(flags).settings


def in_file(tmp_path: Path, text: str, name: str = "serve.toml") -> Resolved:
    (tmp_path / name).write_text(text)
    return resolve(config=str(tmp_path / name))


def test_flags_come_before_the_environment_before_the_file_before_defaults(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('port = 1\nmax-num-seqs = 2\nkeep_alive = "1m"\n')
    environ = {"TUILI_SERVE_PORT": "3", "TUILI_SERVE_MAX_NUM_SEQS": "4", "TUILI_SERVE_SEED": ""}
    found = resolve({"port": "5"}, environ, str(tmp_path / "serve.toml"))
    settings = found.settings
    assert (settings.port, settings.max_num_seqs, settings.keep_alive_s, settings.host) == (5, 4, 60.0, "127.0.0.1")
    assert settings.seed is None
    assert found.origins == {
        "port": "--port",
        "max_num_seqs": "TUILI_SERVE_MAX_NUM_SEQS",
        "keep_alive_s": f"{tmp_path}/serve.toml: keep_alive",
    }


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "serve.json").write_text('{"port": 7, "served-model-name": ["a"], "models": ["m"]}')
    settings = resolve(environ={"TUILI_SERVE_CONFIG": str(tmp_path / "serve.json")}).settings
    assert (settings.port, settings.models, settings.served_model_name) == (7, ("m",), ("a",))


def test_every_default_is_allowed() -> None:
    settings = ServeSettings()
    for field, setting in all_settings().items():
        value = getattr(settings, field)
        if value not in (None, "", -1.0):
            assert setting.kind.check(setting.name, list(value) if isinstance(value, tuple) else value) == value


def test_names_outside_are_unique() -> None:
    settings = all_settings().values()
    flags = [flag for setting in settings for flag in {setting.flag, *setting.flags}]
    variables = [variable for s in settings for variable in (s.variable, *s.variables, s.ollama) if variable]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)
    assert all(setting.help.endswith(".") for setting in settings)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("keep_alive", "5m", "keep_alive_s", 300.0),
        ("keep_alive", "1h30m", "keep_alive_s", 5400.0),
        ("keep_alive", "-1", "keep_alive_s", -1.0),
        ("keep_alive", "-1s", "keep_alive_s", -1.0),
        ("keep_alive", "0", "keep_alive_s", 0.0),
        ("keep_alive", "1.5", "keep_alive_s", 1.5),
        ("sse_keep_alive", "300ms", "sse_keep_alive_s", 0.3),
        ("max_model_len", "16k", "max_model_len", 16_000),
        ("max_model_len", "16K", "max_model_len", 16_384),
        ("max_model_len", "1.5k", "max_model_len", 1500),
        ("max_model_len", "auto", "max_model_len", None),
        ("max_model_len", "-1", "max_model_len", None),
        ("kv_cache_memory_bytes", "4GiB", "kv_cache_memory_bytes", 4 << 30),
        ("kv_cache_memory_bytes", "4G", "kv_cache_memory_bytes", 4 << 30),
        ("kv_cache_memory_bytes", "4GB", "kv_cache_memory_bytes", 4 * 10**9),
        ("kv_cache_memory_bytes", "0.5 MiB", "kv_cache_memory_bytes", 1 << 19),
        ("kv_cache_memory_bytes", "1024", "kv_cache_memory_bytes", 1024),
        ("allowed_origins", '["https://a.example", "*"]', "allowed_origins", ("https://a.example", "*")),
        ("allowed_origins", "https://a.example, https://b.example", "allowed_origins",
         ("https://a.example", "https://b.example")),
        ("api_key", ["comma,key", "secret-key"], "api_key", ("comma,key", "secret-key")),
        ("speculative_config", "none", "speculative_config", None),
        ("quantization", "Q4_K_M", "quantization", "Q4_K_M"),
        ("strict", True, "strict", True),
        ("default_chat_template_kwargs", '{"enable_thinking": false}', "default_chat_template_kwargs",
         {"enable_thinking": False}),
        ("log_format", "json", "log_format", "json"),
        ("otlp_traces_endpoint", "http://[::1]:4318/v1/traces", "otlp_traces_endpoint", "http://[::1]:4318/v1/traces"),
    ],
)  # fmt: skip
def test_values_are_read_as_people_write_them(name: str, text: Any, field: str, value: object) -> None:
    assert getattr(of(**{name: text}), field) == value


BAD_FLAGS: list[tuple[str, Any, str]] = [
    ("port", "x", "--port must be an integer in [0, 65535], got 'x'"),
    ("port", "-1", "--port must be an integer in [0, 65535], got -1"),
    ("port", "65536", "--port must be an integer in [0, 65535]"),
    ("port", "1.5", "--port must be an integer"),
    ("port", "٣", "--port must be an integer"),
    ("port", "", "--port must be an integer"),
    ("host", "", "--host must be a text that is not empty"),
    ("host", "a\nb", "--host must be a text without control characters"),
    ("host", "x" * 300, "--host must have at most 255 characters, got 300"),
    ("max_num_seqs", "0", "--max-num-seqs must be an integer in [1, 16384], got 0"),
    ("max_num_seqs", "1e9", "--max-num-seqs must be"),
    ("max_num_seqs", "nan", "--max-num-seqs must be"),
    ("max_num_batched_tokens", "4", "max_num_batched_tokens must be >= max_num_seqs = 32, got 4"),
    ("max_model_len", "0", "--max-model-len must be an integer >= 1, got 0"),
    ("max_model_len", "0.5", "--max-model-len must be an integer"),
    ("max_model_len", "9" * 30, "--max-model-len must be an integer"),
    ("gpu_memory_utilization", "0", "--gpu-memory-utilization must be a number in (0, 1], got 0"),
    ("gpu_memory_utilization", "1.1", "--gpu-memory-utilization must be a number in (0, 1]"),
    ("gpu_memory_utilization", "nan", "--gpu-memory-utilization must be a number in (0, 1]"),
    ("gpu_memory_utilization", "inf", "--gpu-memory-utilization must be a number in (0, 1]"),
    ("gpu_memory_utilization", "half", "--gpu-memory-utilization must be a number in (0, 1]"),
    ("kv_cache_dtype", "fp4", "--kv-cache-dtype must be one of auto, bfloat16, int8, fp8, got 'fp4'"),
    ("kv_cache_memory_bytes", "4 apples", "--kv-cache-memory-bytes must be bytes >= 1, such as 4GiB"),
    ("kv_cache_memory_bytes", "0", "--kv-cache-memory-bytes must be an integer >= 1"),
    ("kv_cache_memory_bytes", "-4G", "--kv-cache-memory-bytes must be bytes >= 1"),
    ("block_size", "48", "--block-size must be one of 16, 32, 64, 128, 256, got 48"),
    ("default_chat_template_kwargs", "[1]", "--default-chat-template-kwargs must be a JSON object, got [1]"),
    ("log_format", "xml", "--log-format must be one of text, json, got 'xml'"),
    ("otlp_traces_endpoint", "localhost:4317", "--otlp-traces-endpoint must be an http or https URL such as"),
    ("otlp_traces_endpoint", "grpc://a:4317", "--otlp-traces-endpoint must be an http or https URL such as"),
    ("backend", "gpu", "--backend must be one of cpu, reference, torch, got 'gpu'"),
    ("max_slowdown", "1", "--max-slowdown must be a number > 1"),
    ("quantization", "awq", "--quantization must be one of q4_0"),
    ("speculative_config", "{", "--speculative-config must be a JSON object or 'none', got '{'"),
    ("speculative_config", "[" * 100_000, "--speculative-config must be a JSON object or 'none'"),
    ("speculative_config", '{"x": 1}', "speculative_config: 'x' is not implemented"),
    ("override_generation_config", "[1]", "--override-generation-config must be a JSON object"),
    ("override_generation_config", '{"temperature": -1}', "override_generation_config: temperature must be"),
    ("generation_config", "/tmp", "--generation-config must be one of auto, vllm"),
    ("seed", "-1", "--seed must be an integer >= 0"),
    ("keep_alive", "soon", "--keep-alive must be seconds or a time such as 30s or 5m, or negative"),
    ("keep_alive", "nan", "--keep-alive must be seconds"),
    ("keep_alive", "5 parsecs", "--keep-alive must be seconds"),
    ("drain_timeout", "-1", "--drain-timeout must be seconds >= 0"),
    ("load_timeout", "0", "--load-timeout must be seconds >= 1"),
    ("max_loaded_models", "0", "--max-loaded-models must be an integer in [1, 1000]"),
    ("api_key", ["with space"], "--api-key must be 8 to 512 printable ASCII characters without spaces"),
    ("api_key", [""], "--api-key must be 8 to 512"),
    ("api_key", ["schlüssel"], "--api-key must be 8 to 512"),
    ("ssl_certfile", "missing.pem", "--ssl-certfile: 'missing.pem' cannot be read: No such file or directory"),
    ("ssl_certfile", "/", "--ssl-certfile: '/' cannot be read: Is a directory"),
    ("ssl_cert_reqs", "3", "--ssl-cert-reqs must be an integer in [0, 2]"),
    ("served_model_name", ["a"], "served_model_name needs a model to name"),
    ("pin", True, "pin needs a model to be named"),
    ("only_named", True, "only_named needs a model to be named"),
    ("root_path", "v1", "--root-path must be a path that starts with / and does not end with it"),
    ("allowed_origins", "a.example", "--allowed-origins must be"),
    ("allowed_origins", "https://a.example/path", "--allowed-origins must be"),
    ("uds", "x" * 200, "--uds must have at most 100 characters"),
    ("ollama_host", "http://", "--ollama-host must be"),
    ("ollama_host", "localhost:x", "--ollama-host must be"),
    ("tensor_parallel_size", "0", "--tensor-parallel-size must be an integer in [1, 64]"),
    ("pipeline_parallel_size", "65", "--pipeline-parallel-size must be an integer in [1, 64]"),
    ("nnodes", "2", "--nnodes=2 is not implemented: one machine runs the model"),
    ("enable_lora", True, "--enable-lora=True is not implemented: adapters are not loaded yet"),
    ("swap_space", "-1", "--swap-space must be a number >= 0, got -1"),
    ("swap_space", "much", "--swap-space must be a number >= 0, got 'much'"),
    ("enable_auto_tool_choice", True, "--enable-auto-tool-choice=True is not implemented: tools do not exist yet"),
]  # fmt: skip


def refusal_of(**given: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(**given)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize(("name", "text", "expected"), BAD_FLAGS, ids=lambda value: str(value)[:30])
def test_a_bad_flag_is_named(name: str, text: Any, expected: str) -> None:
    assert expected in refusal_of(flags={name: text})


def _texts() -> list[tuple[str, str]]:
    """The bad flags that are one text, of settings."""
    names = {setting.name for setting in all_settings().values()}
    return [(name, text) for name, text, _ in BAD_FLAGS if name in names and isinstance(text, str) and text]


@pytest.mark.parametrize(("name", "text"), _texts(), ids=lambda value: str(value)[:30])
def test_a_bad_variable_is_named_also_where_a_flag_overrides_it(name: str, text: str) -> None:
    setting = next(setting for setting in all_settings().values() if setting.name == name)
    message = refusal_of(environ={setting.variable: text})
    assert message.startswith((setting.variable, name))


BAD_FILES: list[tuple[str, str, str]] = [
    ("serve.toml", "port = ", "serve.toml: not TOML: Invalid value"),
    ("serve.toml", "port = 'x'", "serve.toml: port must be an integer in [0, 65535], got 'x'"),
    ("serve.toml", "port = 1.0", "serve.toml: port must be an integer in [0, 65535], got 1.0"),
    ("serve.toml", "port = true", "serve.toml: port must be an integer in [0, 65535], got True"),
    ("serve.toml", "strict = 1", "serve.toml: strict must be true or false, got 1"),
    ("serve.toml", "prot = 1", "serve.toml: prot is no setting: did you mean port?"),
    ("serve.toml", "zzzzzz = 1", "serve.toml: zzzzzz is no setting: `tuili serve --help` lists all there are"),
    ("serve.toml", "[server]\nport = 1", "serve.toml: server is no setting"),
    ("serve.toml", "api_key = 5", "serve.toml: api_key must be a list or one text, it is a value of type int"),
    ("serve.toml", "api_key = [5]", "serve.toml: api_key must be 8 to 512 printable"),
    ("serve.toml", "max-model-len = 1\nmax_model_len = 2", "'max_model_len' is there twice"),
    ("serve.toml", "port = 1\nserver-port = 2", "serve.toml: server_port: port says the same"),
    ("serve.toml", "nnodes = 2", "serve.toml: nnodes=2 is not implemented"),
    ("serve.toml", "keep_alive = 'x'", "serve.toml: keep_alive must be seconds"),
    ("serve.toml", "speculative_config = 3", "serve.toml: speculative_config must be a JSON object or 'none', got 3"),
    ("serve.json", "{", "serve.json: not JSON"),
    ("serve.json", "[]", "serve.json: must be a JSON object, it is a value of type list"),
    ("serve.json", '{"port": 1e400}', "serve.json: port must be an integer in [0, 65535], got inf"),
    ("serve.json", '{"port": NaN}', "serve.json: port must be an integer in [0, 65535], got nan"),
    ("serve.json", "[" * 100_000, "serve.json: not JSON"),
    ("serve.yaml", "port: 1", "serve.yaml: must be TOML or JSON, not YAML"),
    ("serve.toml", "a = '" + "x" * (1 << 20) + "'", "serve.toml: more than 1048576 bytes"),
]


@pytest.mark.parametrize(("name", "text", "expected"), BAD_FILES, ids=lambda value: str(value)[:30])
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    message = refusal_of(config=str(tmp_path / name))
    assert expected in message
    assert name in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal_of(config=str(tmp_path / "none.toml"))
    assert "cannot be read: not a regular file" in refusal_of(config=str(tmp_path))
    assert "cannot be read: not a regular file" in refusal_of(config="/dev/zero")
    assert "cannot be read" in refusal_of(config="a\0b")
    (tmp_path / "latin.toml").write_bytes(b"host = '\xe4'")
    assert "latin.toml: not UTF-8" in refusal_of(config=str(tmp_path / "latin.toml"))


def test_a_variable_that_is_no_setting_is_named() -> None:
    assert refusal_of(environ={"TUILI_SERVE_PROT": "1"}) == (
        "TUILI_SERVE_PROT is no setting: did you mean TUILI_SERVE_PORT?"
    )


def test_a_secret_is_in_no_message_and_no_repr() -> None:
    assert "hush" not in refusal_of(flags={"api_key": ["hush hush"]})
    assert "hush" not in refusal_of(environ={"VLLM_API_KEY": "hush hush"})
    assert "hush" not in repr(of(api_key=["hush-hush-1"], admin_api_key=["hush-hush-2"]))


def test_vllm_says_its_key_in_a_variable() -> None:
    assert resolve(environ={"VLLM_API_KEY": "key-of-vllm"}).settings.api_key == ("key-of-vllm",)
    ours = {"VLLM_API_KEY": "key-of-vllm", "TUILI_SERVE_API_KEY": "key-of-ours"}
    assert resolve(environ=ours).settings.api_key == ("key-of-ours",)


OLLAMA = {
    "OLLAMA_HOST": "0.0.0.0",
    "OLLAMA_KEEP_ALIVE": "0",
    "OLLAMA_NUM_PARALLEL": "4",
    "OLLAMA_MAX_QUEUE": "9",
    "OLLAMA_MAX_LOADED_MODELS": "0",
    "OLLAMA_ORIGINS": "http://a.example,app://*",
    "OLLAMA_CONTEXT_LENGTH": "4096",
}


def test_ollamas_variables_count_where_it_is_stood_in_for(tmp_path: Path) -> None:
    assert resolve(environ=OLLAMA).settings == ServeSettings()
    settings = resolve({"ollama": True}, OLLAMA).settings
    assert (settings.ollama_host, settings.keep_alive_s, settings.max_num_seqs) == ("0.0.0.0", 0.0, 4)
    assert (settings.max_queued_requests, settings.max_loaded_models, settings.max_model_len) == (9, None, 4096)
    assert settings.allowed_origins == ("http://a.example", "app://*")
    assert in_file(tmp_path, "ollama = true").settings.ollama
    assert resolve({"ollama": True, "max_num_seqs": "2"}, OLLAMA).settings.max_num_seqs == 2
    assert "OLLAMA_NUM_PARALLEL must be" in refusal_of(flags={"ollama": True}, environ={"OLLAMA_NUM_PARALLEL": "x"})


@pytest.mark.parametrize("values", [{"swap_space": 4, "enforce_eager": True}, {"cpu_offload_gb": 1}])
def test_vllms_settings_without_effect_are_noted(tmp_path: Path, values: Mapping[str, Any]) -> None:
    notes = in_file(tmp_path, json.dumps(values), "serve.json").notes
    assert [note.split(" ")[0] for note in notes] == list(values)


def test_a_name_for_each_model() -> None:
    pool = of(models=["m1", "m2"], served_model_name=["a", "b"]).pool()
    assert [(model.model, model.served_names) for model in pool.models] == [("m1", ("a",)), ("m2", ("b",))]
    pool = of(models=["m1"], served_model_name=["a,b"]).pool()
    assert pool.models[0].served_names == ("a", "b")
    message = refusal_of(flags={"models": ["m1", "m2"], "served_model_name": ["a", "b", "c"]})
    assert message == "served_model_name must be one name for each of 2 models, got 3"


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('port = "x"\nprot = 3\nblock-sise = 64\nnnodes = 2\n')
    environ = {"TUILI_SERVE_MAX_NUM_SEQS": "0", "TUILI_SERVE_NONE": "1"}
    with pytest.raises(InvalidRequestError) as caught:
        resolve({"keep_alive": "soon", "max_lora_rank": "0", "port": "8001"}, environ, str(tmp_path / "serve.toml"))
    told = str(caught.value)
    assert told.startswith("8 settings are wrong: ")
    for part in (
        "serve.toml: port must be an integer",
        "serve.toml: prot is no setting: did you mean port?",
        "serve.toml: block_sise is no setting: did you mean block_size?",
        "serve.toml: nnodes=2 is not implemented: one machine runs the model",
        "TUILI_SERVE_MAX_NUM_SEQS must be an integer in [1, 16384], got 0",
        "TUILI_SERVE_NONE is no setting",
        "--keep-alive must be seconds",
        "--max-lora-rank must be >= 1, got 0",
    ):
        assert part in told


MISSION = {
    # what vllm serve and LMDeploy's api_server call it: (typed, the field, what it comes to)
    "host": ("0.0.0.0", "host", "0.0.0.0"),
    "server_name": ("::1", "host", "::1"),
    "port": ("9", "port", 9),
    "server_port": ("9", "port", 9),
    "served_model_name": (["a", "b"], "served_model_name", ("a", "b")),
    "max_num_seqs": ("7", "max_num_seqs", 7),
    "max_batch_size": ("7", "max_num_seqs", 7),
    "max_num_batched_tokens": ("2048", "max_num_batched_tokens", 2048),
    "max_model_len": ("4k", "max_model_len", 4000),
    "session_len": ("4096", "max_model_len", 4096),
    "gpu_memory_utilization": ("0.5", "gpu_memory_utilization", 0.5),
    "response_role": ("model", "response_role", "model"),
    "max_prefill_token_num": ("2048", "max_num_batched_tokens", 2048),
    "cache_block_seq_len": ("64", "block_size", 64),
    "model_name": (["a"], "served_model_name", ("a",)),
    "allow_origins": (["https://a.example"], "allowed_origins", ("https://a.example",)),
    "eager_mode": (True, "enforce_eager", True),
    "dp": ("2", "data_parallel_size", 2),
}


@pytest.mark.parametrize("name", MISSION)
def test_names_that_other_servers_users_type(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    (setting,) = [s for s in all_settings().values() if flag in (s.flag, *s.flags)]
    typed, field, value = MISSION[name]
    assert getattr(of(models=["m"], insecure=True, **{setting.name: typed}), field) == value


LMDEPLOY = [
    "server-name",
    "server-port",
    "backend",
    "model-name",
    "model-format",
    "tp",
    "dp",
    "ep",
    "cp",
    "nnodes",
    "node-rank",
    "dist-init-addr",
    "session-len",
    "max-batch-size",
    "cache-max-entry-count",
    "cache-block-seq-len",
    "enable-prefix-caching",
    "quant-policy",
    "max-prefill-token-num",
    "num-tokens-per-iter",
    "dtype",
    "adapters",
    "device",
    "eager-mode",
    "chat-template",
    "tool-call-parser",
    "reasoning-parser",
    "generation-config",
    "hf-overrides",
    "speculative-algorithm",
    "speculative-draft-model",
    "speculative-num-draft-tokens",
    "rope-scaling-factor",
    "role",
    "migration-backend",
    "kv-transfer-config",
    "communicator",
    "api-keys",
    "ssl",
    "allow-origins",
    "max-concurrent-requests",
    "enable-abort-handling",
    "allow-terminate-by-client",
    "proxy-url",
    "log-level",
    "max-log-len",
    "disable-metrics",
    "disable-fastapi-docs",
    "logprobs-mode",
    "trust-remote-code",
    "revision",
    "download-dir",
]


def test_every_flag_of_lmdeploy_is_known() -> None:
    flags = {flag for setting in all_settings().values() for flag in (setting.flag, *setting.flags)}
    foreign = {f"--{name.replace('_', '-')}" for name in foreign_flags.known_names()}
    assert not [name for name in LMDEPLOY if f"--{name}" not in flags | foreign]


def test_what_lmdeploy_says_otherwise_names_the_setting() -> None:
    assert refusal_of(flags={"cache_max_entry_count": "0.5"}) == (
        "--cache-max-entry-count=0.5 is not implemented: say it in gpu_memory_utilization, a share of the whole memory"
    )
    assert resolve({"cache_max_entry_count": "0.8", "quant_policy": "0", "role": "Hybrid", "ssl": False}).notes == ()
    assert resolve({"communicator": "cuda-ipc"}).notes == ("communicator (GPUs exchange their sums by NCCL)",)


def test_swap_space_says_that_it_has_no_effect_on_a_cpu() -> None:
    (note,) = resolve({"swap_space": "4"}).notes
    assert note == "swap_space (it has no effect on a CPU, where the KV cache is in host memory anyway)"
    assert resolve({"swap_space": "0"}).notes == ()
    assert ServeSettings().port == 8000


EDGES = (
    *("-1", "0", "1", "2", "65535", "65536", str(2**31), str(2**63 - 1), str(2**63), "9" * 30, "9" * 5000),
    *("nan", "inf", "-inf", "-0.0", "0.5", "1e308", "1e400", "5e-324", "", " ", "abc", "true", "[1]", "{}", "null"),
    *("0x10", "1_0", "1,5", "--1", "a\nb\x1b[2J", "\0", "x" * 5000, "\u0661"),
)


@pytest.mark.parametrize("field", all_settings())
def test_every_setting_at_the_edges_of_its_type(field: str) -> None:
    """As a flag and as a variable: it is taken, or refused in a short line that names it and says what is allowed."""
    setting = all_settings()[field]
    for value in EDGES:
        flag = [value] if isinstance(setting.kind, Many) else value
        for source in ({"flags": {setting.name: flag}}, {"environ": {setting.variable: value}}):
            try:
                resolve(**source)  # type: ignore[arg-type]
            except InvalidRequestError as error:
                told = str(error)
            else:
                continue
            named = "model" if field == "models" else setting.name.replace("_", "-")
            assert named in told.replace("_", "-").lower(), (value, told)
            assert len(told) < 1001
            assert told.isprintable()
