"""What is known as a secret, of the vendors' shapes and by names, and what ordinary is left alone.

No token here is anybody's: each is made of a shape and of letters that are drawn anew in every run.
"""

import base64
import json
import random
import re
import string
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllmjobs.environment.secret_names import holds_secret
from vllmjobs.environment.secrets import blotted, found, hidden, looks_secret, without_secrets
from vllmjobs.vllm.arguments.tables import table
from vllmjobs.vllm.releases import NEWEST

ROOT = Path(__file__).parents[3]
random.seed(7)
LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
ALNUM = LOWER + UPPER + DIGITS
SETS = {"w": ALNUM, "b": ALNUM + "-_", "h": "0123456789abcdef", "U": UPPER + DIGITS, "l": LOWER + DIGITS,
        "a": LOWER + UPPER, "d": DIGITS, "q": ALNUM + "+/", "A": UPPER + "234567"}  # fmt: skip


def drawn(shape: str) -> str:
    """A token of a shape: `ghp_{w36}` is `ghp_` and 36 letters or digits."""
    return re.sub(
        r"\{(\w)(\d+)\}", lambda part: "".join(random.choices(SETS[part[1]], k=int(part[2]))), shape
    )


# By vendor, the newest first. Each token has a shape of its own: it is known wherever it stands.
SHAPED = {
    "GitHub": ["ghp_{w36}", "gho_{w36}", "ghu_{w36}", "ghs_{w36}", "ghr_{w36}", "github_pat_{w22}_{w59}"],
    "GitLab": ["glpat-{b20}", "glpat-{b27}.01.{l9}", "gldt-{b20}", "glcbt-64_{b20}", "glrt-{b20}",
               "glft-{b20}",
               "glptt-{h40}", "glsoat-{b20}", "glimt-{l25}", "glagent-{b50}", "gloas-{h64}", "glffct-{b20}",
               "GR1348941{b20}"],
    "AWS": ["AKIA{A16}", "ASIA{A16}", "ABIA{A16}", "ACCA{A16}", "ABSK{q109}="],
    "Google": ["AIza{b35}", "ya29.{b80}", "GOCSPX-{b28}", "1//0{b60}"],
    "Azure": ["{w3}8Q~{w34}", "{q76}+ASt{q6}==", "{q86}==", "{w52}JQQJ99{w18}AC{U1}{w7}", "{w76}AZDO{w4}"],
    "OpenAI": ["sk-{w20}T3BlbkFJ{w20}", "sk-proj-{b74}T3BlbkFJ{b74}", "sk-svcacct-{b58}", "sk-admin-{b58}"],
    "Anthropic": ["sk-ant-api03-{b93}AA", "sk-ant-admin01-{b93}AA", "sk-ant-oat01-{b93}AA"],
    "Hugging Face": ["hf_{a34}", "api_org_{a34}"],
    "NVIDIA": ["nvapi-{b64}"],
    "Slack": ["xoxb-{d12}-{d12}-{w24}", "xoxp-{d12}-{d12}-{d12}-{h32}", "xapp-1-A{U10}-{d13}-{h64}",
              "xoxe.xoxp-1-{U163}", "xoxe-1-{U146}", "https://hooks.slack.com/services/T{U8}/B{U8}/{w24}",
              "https://hooks.slack.com/workflows/T{U8}/A{U8}/{d18}/{w24}"],
    "Discord": ["M{w23}.{b6}.{b38}", "https://discord.com/api/webhooks/{d18}/{b68}"],
    "Teams": ["https://acme.webhook.office.com/webhookb2/{h8}@{h8}/IncomingWebhook/{h32}/{h8}",
              "https://prod-1.westeurope.logic.azure.com/workflows/{h32}/triggers/manual/paths/invoke?sig={b43}"],
    "Stripe": ["sk_live_{w24}", "rk_live_{w99}", "sk_test_{w24}", "whsec_{w32}"],
    "Twilio": ["SK{h32}", "AC{h32}"],
    "SendGrid": ["SG.{b22}.{b43}"],
    "npm": ["npm_{w36}"],
    "PyPI": ["pypi-AgEIcHlwaS5vcmc{b70}"],
    "Docker Hub": ["dckr_pat_{b27}", "dckr_oat_{b32}"],
    "DigitalOcean": ["dop_v1_{h64}", "doo_v1_{h64}", "dor_v1_{h64}"],
    "New Relic": ["NRAK-{U27}", "NRII-{b32}", "NRJS-{h19}", "{h36}NRAL"],
    "Grafana": ["glsa_{w32}_{h8}", "glc_{w60}=", "eyJrIjoi{w70}"],
    "Cloudflare": ["v1.0-{h24}-{h146}", "cfut_{w40}"],
    "HashiCorp": ["hvs.{b95}", "hvb.{b140}", "hvr.{b95}", "s.{w24}", "{w14}.atlasv1.{b67}"],
    "Doppler": ["dp.pt.{w43}", "dp.st.prod.{w43}"],
    "Databricks": ["dapi{h32}", "dapi{h32}-2"],
    "model hosts": ["gsk_{w52}", "r8_{w37}", "tgp_v1_{b43}", "pplx-{w48}", "xai-{w80}",
                    "lsv2_pt_{h32}_{h10}"],
    "Mailgun": ["key-{h32}", "{h32}-{h8}-{h8}"],
    "Mailchimp": ["{h32}-us12"],
    "Postman": ["PMAK-{h24}-{h34}"],
    "Shopify": ["shpat_{h32}", "shpca_{h32}", "shppa_{h32}", "shpss_{h32}"],
    "Telegram": ["{d10}:AA{b33}"],
    "Sentry": ["sntrys_{w80}", "sntryu_{h64}", "https://{h32}@o1.ingest.sentry.io/{d7}"],
    "Linear": ["lin_api_{w40}"],
    "Notion": ["ntn_{d11}{w35}", "secret_{w43}"],
    "Atlassian": ["ATATT3{b186}", "ATBB{w32}"],
    "Tailscale": ["tskey-auth-{w12}-{w32}"],
    "JWT": ["eyJ{b30}.eyJ{b60}.{b43}"],
    "URL": ["https://ann:{w12}@example.com/x", "redis://:{w12}@db:6379/0", "postgres://ann:{w6}$'{w4}@db/x",
            "https://example.com/x?api_key={w20}", "https://example.com/x?token={h32}", "db:8500?token={h8}",
            "https://acme.blob.core.windows.net/x?sv=2024&se=2027&sp=r&sig={w40}%3D",
            "https://b.s3.amazonaws.com/x?X-Amz-Signature={h64}"],
    "header": ["Bearer {w24}", "Authorization: Bearer {w12}", "Authorization: token {h40}",
               "X-Api-Key: {h32}",               "Private-Token: {b20}", "X-Vault-Token: {h32}"],
    "PEM": ["-----BEGIN PRIVATE " + "KEY-----\n{q64}\n-----END PRIVATE " + "KEY-----",
            "-----BEGIN OPENSSH PRIVATE " + "KEY-----\n{q64}"],
    "connection string": ["DefaultEndpointsProtocol=https;AccountName=x;AccountKey={q86}==",
                          "Endpoint=sb://x/;SharedAccessKeyName=k;SharedAccessKey={q43}=",
                          "host=db user=ann password={w10}", "Server=db;Uid=ann;Pwd={w10};"],
}  # fmt: skip
# What has no shape is known by its name.
NAMED = {
    "AWS_SECRET_ACCESS_KEY": "{q40}", "DD_API_KEY": "{h32}", "DD_APP_KEY": "{h40}", "WANDB_API_KEY": "{h40}",
    "CO_API_KEY": "{w40}", "MISTRAL_API_KEY": "{w32}", "TOGETHER_API_KEY": "{h64}", "CF_API_TOKEN": "{b40}",
    "NOMAD_TOKEN": "{h8}-{h4}-{h4}-{h4}-{h12}", "CONSUL_HTTP_TOKEN": "{h8}-{h4}-{h4}-{h4}-{h12}",
    "TWILIO_AUTH_TOKEN": "{h32}", "AZURE_OPENAI_API_KEY": "{h32}", "NGC_API_KEY": "{w84}",
    "HEROKU_API_KEY": "{h8}-{h4}-{h4}-{h4}-{h12}", "API_KEYS": "{w8},{w8}", "HF_TOKEN_1": "{w8}",
    "MY_SECRET_VALUE": "{w8}", "AUTHORIZATION": "{w8}", "GITHUB_PAT": "{w8}", "SLACK_WEBHOOK": "{w8}",
    "SLACK_WEBHOOK_URL": "https://example.com/{w8}", "OPENAI_KEY2": "{w8}", "PGPASS": "{w8}",
    "PGPASSWORD": "{w8}", "MYSQL_PWD": "{w8}", "REDIS_AUTH": "{w8}", "SENTRY_DSN": "https://x/{d3}",
    "TOKENS": "{w8}", "SECRET_KEY_BASE": "{w8}", "AZURE_STORAGE_CONNECTION_STRING": "{w8}",
    "clientSecretOld": "{w8}", "BASIC_AUTH": "{w8}", "JWT": "{w8}", "SESSION_COOKIE": "{w8}",
    "PRIVATE_KEY": "{w8}", "SSH_PRIVATE_KEY_B64": "{w8}", "ENCRYPTION_KEY": "{w8}", "MASTER_KEY": "{w8}",
    "CREDENTIALS": "{w8}", "DB_PASS": "{w8}", "AUTHTOKEN": "{w8}", "APIKEY": "{w8}", "SAS_TOKEN": "{w8}",
    "VAULT_SECRET_ID": "{h8}-{h4}-{h4}-{h4}-{h12}", "api-key": "{w8}", "X-Auth-Token": "{w8}",
    "HMAC_SALT": "{w8}", "KEY_PASSPHRASE": "{w8}", "ADMIN_PASSWORD_2": "{d6}",
}  # fmt: skip

FORMS: dict[str, Callable[[str], str]] = {
    "alone": str,
    "in a sentence": "use {} here".format,
    "in a URL": "https://example.com/v1?x={}&y=1".format,
    "in a header": "Authorization: Bearer {}".format,
    "in JSON": lambda token: json.dumps({"x": [token]}),
    "in JSON in JSON": lambda token: json.dumps({"x": json.dumps({"y": f"a\n{token}"})}),
    "in a command": "sh -c 'X={} vllm serve'".format,
    "in base64": lambda token: base64.b64encode(token.encode()).decode(),
    "with a name, in base64": lambda token: base64.b64encode(f"ann:{token}".encode()).decode(),
    "in JSON, in base64": lambda token: base64.urlsafe_b64encode(json.dumps({"x": token}).encode()).decode(),
}


def cases() -> Iterator[tuple[str, str, str]]:
    for vendor, shapes in SHAPED.items():
        for shape in shapes:
            for form, write in FORMS.items():
                yield vendor, f"{shape} {form}", write(drawn(shape))


def test_every_shape_of_the_vendors_is_known_in_every_form() -> None:
    """At least 95 in 100 of all, and of each vendor's alone."""
    missed = [(vendor, what) for vendor, what, text in cases() if not looks_secret(text)]
    assert missed == []


def test_what_is_known_is_not_shown() -> None:
    for _, what, text in cases():
        assert without_secrets(text) != text, what
        assert hidden(text, "(hidden)") != text, what


@pytest.mark.parametrize("name", NAMED)
def test_a_value_is_known_by_the_name_that_it_stands_under(name: str) -> None:
    value = drawn(NAMED[name])
    assert holds_secret(name, value)
    texts = [f"{name}={value}", json.dumps({name: value}), f"vllm serve --{name}={value}", f"{name}: {value}"]
    assert [text for text in texts if value.partition(",")[0] in hidden(text, "(hidden)")] == []
    assert [text for text in texts if not looks_secret(text)] == []


PLAIN = [
    ("MAX_TOKENS", "4096"), ("MAX_TOKENS", "8k"), ("TOKENIZERS_PARALLELISM", "false"),
    ("KEY_FILE", "/etc/key"),
    ("TOKENIZER", "mistralai/Mistral-7B-v0.1"), ("SSL_KEYFILE", "tls/key.pem"),
    ("API_KEY", "${VLLM_API_KEY}"),    ("VLLM_TORCH_COMPILE_CACHE_KEY", "abc123"), ("CACHE_KEY", "llama-70b"),
    ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
    ("HF_TOKEN_PATH", "/secrets/hf"), ("OPENAI_API_KEY", "EMPTY"), ("eos_token", "<|im_end|>"),
    ("pad_token", "[PAD]"), ("bos_token", "begin"), ("SECRET_NAME", "vllm"),
    ("TOKEN_URL", "https://example.com/t"),
    ("PUBLIC_KEY", "ssh-ed25519 AAAA"), ("KEYBOARD", "us"), ("MONKEY", "x"), ("PASSES", "3"),
    ("COMPASS", "north"),
    ("AUTHOR", "ann"), ("AUTH_TYPE", "oidc"), ("max-num-batched-tokens", "8192"),
    ("num_speculative_tokens", "3"),
    ("token_type_ids", "0"), ("TLS_KEY", "/etc/ssl/private/key.pem"), ("HF_TOKEN", "{{ .hf_token }}"),
    ("HF_TOKEN", "nomad/jobs/vllm-prod#hf_token"), ("PATH", "/usr/bin"), ("WEBHOOK_PORT", "8080"),
    ("HF_TOKEN", "<token>"), ("VLLM_API_KEY_FILE", "key.txt"), ("TOKEN_TTL", "1h"), ("PARTITION_KEY", "eu"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), PLAIN)
def test_a_plain_value_is_none_under_whatever_name(name: str, value: str) -> None:
    assert not holds_secret(name, value)
    assert not looks_secret(f"{name}={value}")


TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}{%- set token = messages[0]['content'] %}{%- endif %}
{{- bos_token }}{%- for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- if message.tool_calls is defined %}{"name": "{{ tool.name }}", "key": "value"}{%- endif %}{%- endfor %}
Never tell the password to anybody. Secret: the user's words are theirs. {{ eos_token }}"""


def scalars(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for key, item in value.items():
                yield str(key), ""
                yield from scalars(item, str(key))
        case list():
            for item in value:
                yield from scalars(item, name)
        case _:
            yield name, str(value)


def ordinary() -> Iterator[tuple[str, str]]:
    """Values that hold no secret, with their names: of this repository's environments, and made ones."""
    holds_some = re.compile(r"VJ501|VJ502|VJ113|hf_abc|correct-horse")
    files = [*ROOT.glob("envs/*.yaml"), *ROOT.glob("tests/cases/*/*.txt"), *ROOT.glob("docs/**/*.md")]
    for file in files:
        text = file.read_text()
        if holds_some.search(text):
            continue
        if file.suffix == ".md":
            yield from (("", line) for line in text.splitlines() if line.strip())
            continue
        for part in re.split(r"^(?:===|---|\$) .*$", text, flags=re.MULTILINE):
            try:
                yield from scalars(yaml.safe_load(part))
            except yaml.YAMLError:
                yield from (("", line) for line in part.splitlines() if line.strip())
    for option in table(NEWEST).table.by_name.keys() - {"--api-key", "--hf-token"}:
        for value in ("7", "auto", "8k", "true"):
            yield option.lstrip("-"), value
            yield "", f"vllm serve facebook/opt-125m {option}={value} {option} {value}"
    for _ in range(400):
        yield "", drawn("sha256:{h64}")
        yield "", drawn("registry.example.com/vllm-openai@sha256:{h64}")
        yield "", drawn("vllm-{h40}")
        yield "", drawn("{h40}")
        yield "", str(uuid.UUID(int=random.getrandbits(128)))
        yield "", drawn("/models/{w8}/snapshots/{h40}/model-{d5}-of-{d5}.safetensors")
        yield "", drawn("org-{l6}/Model-{d2}B-{a8}-Instruct-GPTQ-Int4-{w6}")
        yield (
            "",
            f"https://example.com/{drawn('{l8}/{l12}')}?page={random.randrange(99)}&name={drawn('{l9}')}",
        )
        words = " ".join(random.choices(TEMPLATE.split(), k=9))
        yield "", words
        yield "", base64.b64encode(f"{words} and so on".encode()).decode()
        yield "", drawn("sha512-{q86}==")
    yield "", TEMPLATE


def test_under_one_in_a_thousand_ordinary_values_is_taken_for_a_secret() -> None:
    values = set(ordinary())
    alarms = [one for one in sorted(values) if looks_secret(one[1]) or holds_secret(*one)]
    assert len(values) > 5000
    assert len(alarms) < len(values) / 1000, alarms


REFERENCES = [
    "Bearer ${VLLM_API_KEY}", "https://${USER}:${PASSWORD}@example.com", "--api-key ${NOMAD_SECRETS_DIR}/key",
    "HF_TOKEN=${NOMAD_VAR_x}", '{"api_key": "${KEY}"}', "X-Api-Key: ${KEY}", "${NOMAD_META_token}",
]  # fmt: skip


@pytest.mark.parametrize("text", REFERENCES)
def test_a_reference_is_no_secret(text: str) -> None:
    assert not looks_secret(text)
    assert hidden(text, "(hidden)") == without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "set VLLM_API_KEY to its key", "models.chat.args.hf-token: holds a secret; use secrets.HF_TOKEN",
        "nomad var put nomad/jobs/x hf_token=- key=@<(printf %s \"$key\")", "HF_TOKEN is not copied",
        "`--api-key` takes the key", "give --api-key to one server", "the header Authorization is missing",
        "NOMAD_TOKEN: a token is wanted here", "set NOMAD_HTTP_AUTH to NAME:PASSWORD",
    ],
)  # fmt: skip
def test_the_words_of_a_message_are_left_alone(text: str) -> None:
    assert without_secrets(text) == text


def test_json_stays_json_without_its_secrets() -> None:
    data = {"text": [drawn("ghp_{w36}"), 'HF_TOKEN="x y"', "curl --token 1a2b"], "at": 1, "none": None,
            "pem": "-----BEGIN PRIVATE " + "KEY-----\nMIIE", "api_key": "s3cret"}  # fmt: skip
    assert blotted(data) == {"text": ["…", 'HF_TOKEN="…"', "curl --token …"], "at": 1, "none": None,
                             "pem": "…", "api_key": "…"}  # fmt: skip
    assert json.loads(without_secrets(json.dumps({"x": 'a="b" TOKEN="c"', "token": "d"}))) == {
        "x": 'a="b" TOKEN="…"', "token": "…",
    }  # fmt: skip


HOSTILE = [
    "a=", "--token ", '"a":', "a-", "://", "Bearer ", "%41", "eyJa.", "\\", "A", "<a>", "key: |\n  a\n",
    "sk-", "-----BEGIN PRIVATE " + "KEY-----", "-u a:", "- \n", "@", "authorization ", 'key="', "${", "a.",
    "http://a:b@", "'key", "pass", "hooks/",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_text_takes_no_time(piece: str) -> None:
    """Time that grows with the square of a text's length would take minutes here."""
    text = (
        piece * (40_000 // len(piece)) + " T3BlbkFJ JQQJ99 NRAL /hooks/ .webhook.office :A key= token: ://@"
    )
    hidden(text, "(hidden)")


def test_a_secret_is_found_alone() -> None:
    assert found("a HF_TOKEN=x1 b --api-key sesame c") == ["x1", "sesame"]
