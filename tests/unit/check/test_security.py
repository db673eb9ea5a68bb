"""A secret is refused wherever a value can stand in an environment, and said without the value."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vllmjobs.cli import main

TOKEN = "glpat-" + "a1B2c3D4e5F6g7H8i9J0"
WORD = "correct-horse"  # no shape: known by its name alone
MODEL = "models: {chat: {model: facebook/opt-125m, gpus: {memory: 20 GiB}, %s}}"


def check(text: str, folder: Path, form: str = "text") -> Result:
    (folder / "envs").mkdir(exist_ok=True)
    (folder / "envs/prod.yaml").write_text(text)
    done = CliRunner().invoke(main, ["check", "--project", str(folder), "--format", form])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize(
    "text",
    [
        MODEL % f"env: {{SETTING: {TOKEN}}}",
        MODEL % f"env: {{SETTING: 'https://ann:{WORD}@example.com'}}",
        MODEL % f"env: {{API_KEYS: {WORD}}}",
        MODEL % f"args: {{chat-template: {TOKEN}}}",
        MODEL % f"args: {{allowed-origins: [{TOKEN}]}}",
        MODEL % f"args: {{model-loader-extra-config: {{aws_secret_access_key: {WORD}}}}}",
        MODEL % f"args: {{model-loader-extra-config: '{{\"aws_secret_access_key\": \"{WORD}\"}}'}}",
        MODEL % f"args: {{kv-transfer-config: {{kv_connector: x, extra: {{password: {WORD}}}}}}}",
        MODEL % f"args: {{kv-transfer-config: {{kv_connector: x, env: {{API_TOKEN: {WORD}}}}}}}",
        MODEL % f"args: {{kv-transfer-config: {{kv_connector: x, passwords: [a, {WORD}]}}}}",
        MODEL % f"args: {{kv-transfer-config.extra.password: {WORD}}}",
        MODEL % f"args: {{otlp-traces-endpoint: 'https://x/?api_key={WORD}'}}",
        MODEL % f"entrypoint: [/usr/bin/env, HF_TOKEN={WORD}, vllm, serve]",
        MODEL % f"entrypoint: [vllm, serve, --auth-token, {WORD}]",
        MODEL % f"served_name: {TOKEN}",
        MODEL % f"image: 'registry.example.com/{TOKEN}:v1'",
        MODEL % f"placement: {{constraints: [{{attribute: '${{meta.x}}', value: {TOKEN}}}]}}",
        MODEL.replace("facebook/opt-125m", f"https://ann:{WORD}@example.com/x") % "supervised: false",
        MODEL % "supervised: false" + f"\nbalancer: {{consul: 'consul:8500?token={WORD}'}}",
        MODEL % "supervised: false" + f"\nnomad: {{constraints: [{{attribute: x, value: {TOKEN}}}]}}",
    ],
)  # fmt: skip
def test_a_secret_is_refused_in_every_place(text: str, tmp_path: Path) -> None:
    for form in ("text", "json", "sarif", "github"):
        done = check(text, tmp_path, form)
        assert done.exit_code == 1
        assert "VJ501" in done.stdout or "VJ502" in done.stdout, done.stdout
        assert TOKEN not in done.output
        assert WORD not in done.output


@pytest.mark.parametrize(
    "model",
    [
        "args: {max-num-batched-tokens: 8192, long-prefill-token-threshold: 4}",
        "args: {override-generation-config: {max_new_tokens: 512}, hf-overrides: {eos_token: '<|im_end|>'}}",
        "args: {ssl-keyfile: /etc/tls/key.pem}",
        "env: {MAX_TOKENS: 4096, TOKENIZERS_PARALLELISM: 'false', KEY_FILE: /etc/key, VLLM_X_CACHE_KEY: a}",
        "env: {HF_HUB_DISABLE_IMPLICIT_TOKEN: 1, SSL_KEY: '${NOMAD_SECRETS_DIR}/k', HF_PATH: secrets/hf}",
        "secrets: {HF_TOKEN: nomad/jobs/vllm-prod#hf_token, X_PASSWORD: 'vault:kv/data/vllm#password'}",
    ],
)
def test_what_is_plain_passes(model: str, tmp_path: Path) -> None:
    done = check(MODEL % model, tmp_path)
    assert "VJ50" not in done.stdout.replace("VJ503", "").replace("VJ507", "")


@pytest.mark.parametrize(
    "words",
    [
        f"[vllm, serve, --api-key, {WORD}]",
        f"[vllm, serve, --api-key={WORD}]",
        f"[vllm, serve, '--api-key', '{WORD}', --unknown]",
        f"vllm serve --api-key {WORD}",
        f"\n      - vllm\n      - --api-key\n      - {WORD}\n      - serve\n",
        f"\n      - vllm\n      - --auth-token\n      - {WORD}",
    ],
)
@pytest.mark.parametrize("key", ["entrypoint", "args", "no_such_key"])
def test_a_line_that_is_quoted_hides_what_follows_an_option(key: str, words: str, tmp_path: Path) -> None:
    text = f"models:\n  chat:\n    model: facebook/opt-125m\n    replicas: x\n    {key}: {words}\n"
    done = check(text, tmp_path)
    assert done.exit_code == 1
    assert " | " in done.stdout
    assert WORD not in done.output
