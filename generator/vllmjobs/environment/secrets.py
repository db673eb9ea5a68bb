"""Texts that look like a secret, by their form or by their variable's name, and are never shown."""

import re

# Hugging Face, OpenAI, GitHub, AWS, Vault and JWT; none has a space. And the name and password of a URL.
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|AKIA\w{16}|hvs\.[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)|(?<=://)[^/\s:@'\"$]+:[^/\s@'\"$]+@"
)

# Variables that hold a secret, by their name: HF_TOKEN, VLLM_API_KEY, AWS_SECRET_ACCESS_KEY.
SECRET_VARIABLES = re.compile(r"(?i)(TOKEN|_KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASS|_PW|CREDENTIALS?)$")


def looks_secret(text: str) -> bool:
    """Tell whether a text holds what looks like a token, and must not be shown or rendered."""
    return bool(_SECRET.search(text))


def without_secrets(text: str) -> str:
    """Return the text with `…` for whatever looks like a token."""
    return _SECRET.sub("…", text)
