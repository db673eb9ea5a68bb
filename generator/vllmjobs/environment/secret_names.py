"""The names under which secrets are kept: of variables, options, keys, headers. One list for all.

A name counts by its words, however they are joined: HF_TOKEN_1, `--api-key`, clientSecret, X-Auth-Token. The
words are those of detect-secrets 1.5.0 (plugins/keyword.py), of gitleaks (`generic-api-key` of
config/gitleaks.toml at b58d3f1) and of the variables of the vendors in `secret_shapes`.
"""

import re
from functools import cache, lru_cache
from itertools import pairwise


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that tell a secret wherever they stand in a name.
TELLING = _words_of(
    """token tokens secret secrets password passwords passwd passphrase passcode passwort credential
    credentials cred creds authorization cookie cookies webhook webhooks jwt jwts bearer hmac salt
    pat pats dsn pwd sas apikey apikeys accesskey accesskeys secretkey secretkeys privatekey authkey
    accountkey masterkey sshkey sharedkey"""
)
# The ends of those that are written as one: authtoken, pgpass.
GLUED = tuple(
    _words_of(
        """token tokens secret secrets password passwd passphrase apikey apikeys accesskey secretkey
        privatekey accountkey dbpass pgpass sqlpass mypass redispass rootpass userpass adminpass smtppass
        ftppass mailpass dbpwd sqlpwd userpwd"""
    )
)
# Two words that tell one together, of which the second may be `keys`, too.
KEYS_TO = _words_of(
    """access account admin api app auth client crypto decryption deploy encryption master oauth private
    secret service session shared signing ssh storage subscription"""
)
PAIRS = {("connection", "string"), ("connection", "strings"), ("art", "api"), ("auth", "header")}
# Words that tell one at the end, and what may still stand behind them.
LAST = _words_of("key keys pass pw auth oauth")
MORE = _words_of(
    """v b64 base64 hex raw json text string value old new prod production staging dev test primary
    secondary"""
)
# What a tokenizer counts or writes: max_tokens, eos_token.
OF_TOKENIZERS = _words_of(
    """bos eos pad unk sep cls mask image video audio media vision special stop start end begin first last
    next prompt input output completion max min num n total draft speculative spec think thinking
    reasoning tool placeholder new per batched cached generated context implicit queued scheduled"""
)
# Keys that are no secret: of a map, of a cache, of an index.
PUBLIC_KEYS = _words_of(
    """public cache partition primary foreign sort routing shard group hash label metric metrics config
    object index lookup json dict map feature row column order message missing"""
)
# What a name says about a secret, in place of holding it: where it is, what it is called, how long it is.
ABOUT = _words_of(
    """file files path paths dir directory folder name names namespace type types ttl count counts limit
    limits size length len expiry expires expiration timeout interval mode ref enabled required
    disabled bits algorithm format policy prefix env host port issuer audience scheme provider
    plugin class backend parser threshold ratio budget rate usage index details parallelism uri url
    urls endpoint id ids arn engine store manager only adaptive"""
)
SWITCHES = _words_of("allow use enable disable require has is with no")
# The parts of a URL's query that hold one by a word alone: `?key=…`, `&sig=…`.
OF_QUERIES = _words_of("key sig signature sign code pass pw")

_REFERENCE = r"(?:(?:Bearer|Basic|Token)[ ]+)?\$\{[^{}\"]*\}(?:/[\w.-]+|[/:,]?\$\{[^{}\"]*\})*"
_PLAIN = (
    r"(?s)(?i:true|false|yes|no|on|off|none|null|nil|auto|default|optional|required|enabled?|disabled?|empty"
    r"|dummy|not[ _-]?(?:needed|required|used|set)|unused|redacted|unset|basic|bearer|token|any|all|read"
    r"|write|your[ _-].*|string|str|-+|\.+|\*+)|[01]|…|\(hidden\)|.*\.\.\."
    # a variable, a template, a placeholder, a file for curl, the name of a header
    r"|\$[A-Z_][A-Z0-9_]*|\$\(.*|\{\{.*\}\}|\[\[.*\]\]|<[^<>]*>|\[[A-Z_]+\]|%[sd]|%\(\w+\)s"
    r"|@[./<].*|X(?:-[A-Za-z]+)+"
    # a reference of the environment's, and of others
    r"|(?:nomad|vault|env|file|secretref|op|ref)(?::|/)\S+|arn:\S+|[\w.-]+(?:/[\w.-]+)+#[\w.-]+"
    # a path
    r"|(?:~|\.{1,2}|secrets|local|alloc)?(?:/[a-z0-9._@-]+)+/?"
    r"|/(?:alloc|app|config|data|dev|etc|home|local|mnt|models|opt|proc|root|run|secrets?|srv|tmp|usr|var"
    r"|workspace)(?:/[\w.@${}-]+)+"
)
_NUMBER = r"-?[\d.,_]+[kKmMgG]?i?"
_CAMEL = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
_HINTS = tuple(
    _words_of(
        """key tok sec pass pwd pw auth cred cookie hook jwt bearer basic hmac salt pat dsn sas conn sig code
        art_api --user -u"""
    )
)


def may_name_secret(text: str) -> bool:
    """Tell in a moment whether a text may hold the name of a secret."""
    lower = text.lower()
    return any(hint in lower for hint in _HINTS)


@lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Tell whether a variable, an option, a key or a header of this name holds a secret."""
    if not may_name_secret(name):
        return False
    words = whole = _words(name)
    while words and words[-1] in MORE:
        words = words[:-1]
    if not words or not (_tells(words) or _tells(whole)):
        return False
    last = words[-1]
    if last in ("url", "uri", "endpoint") and not {"webhook", "dsn", "sas", "connection"}.isdisjoint(words):
        return True
    if words[-2:] in (("key", "id"), ("secret", "id")):  # AWS_ACCESS_KEY_ID, Vault's SECRET_ID
        return True
    is_of_tokenizer = last in ("token", "tokens") and not OF_TOKENIZERS.isdisjoint(words[-2:-1])
    is_public = last in ("key", "keys") and not PUBLIC_KEYS.isdisjoint(words[-2:-1])
    return not (is_of_tokenizer or is_public or last in ABOUT or words[0] in SWITCHES)


def is_query_secret(name: str) -> bool:
    """Tell whether a part of a URL's query holds a secret; there, `key` and `sig` alone say so."""
    return not OF_QUERIES.isdisjoint(_words(name)[-1:]) or is_secret_name(name)


def holds_secret(name: str, value: str) -> bool:
    """Tell whether a value under this name is a secret: the name is one's, and the value no plain thing.

    A switch, a path, a reference and a placeholder are plain, and so is the number of something that is
    counted: `MAX_TOKENS=4096`.
    """
    return bool(value) and is_secret_name(name) and not is_plain(name, value)


def is_plain(name: str, value: str) -> bool:
    """Tell whether a value is none that anybody would keep: a switch, a path, a reference, a placeholder."""
    if is_reference(value) or _compiled(_PLAIN).fullmatch(value):
        return True
    counted = {"tokens", "keys", "key"} & set(_words(name)) and _words(name)[-1] not in ("key", "apikey")
    return bool(counted and _compiled(_NUMBER).fullmatch(value))


def is_reference(value: str) -> bool:
    """Tell whether a value only names the place of a secret: `${NOMAD_SECRETS_DIR}/key`."""
    return value[:1] in ("$", "B", "T") and bool(_compiled(_REFERENCE).fullmatch(value))


def _tells(words: tuple[str, ...]) -> bool:
    if not TELLING.isdisjoint(words) or any(map(_is_pair, pairwise(words))):
        return True
    last = words[-1]
    return last.endswith(GLUED) or (last in LAST and (len(words) > 1 or "key" not in last))


def _is_pair(pair: tuple[str, str]) -> bool:
    return pair in PAIRS or (pair[0] in KEYS_TO and pair[1] in ("key", "keys"))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@lru_cache(4096)
def _words(name: str) -> tuple[str, ...]:
    """Return a name's words in small letters, each without the number that it ends with."""
    words = re.split(r"[^a-z0-9]+", re.sub(_CAMEL, "_", name).lower())
    return tuple(
        word if word in MORE else word.rstrip("0123456789") for word in words if not word.isdigit() and word
    )
