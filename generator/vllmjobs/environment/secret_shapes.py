"""The shapes of secrets: how each vendor's tokens are written. One list for the whole package, as data.

The facts are those of gitleaks (config/gitleaks.toml at b58d3f1, 2026-07), of detect-secrets 1.5.0 (its
plugins) and of the vendors' own pages; where they differ, the wider one stands here. A token that is only
letters and digits, such as a key of Cohere or a UUID of Nomad, has no shape: it is known by its name
(`vllmjobs.environment.secret_names`).
"""

import re
from functools import cache

# The vendor, how its tokens begin, and the regular expression of what follows.
PREFIXED: tuple[tuple[str, str, str], ...] = (
    ("GitHub", "gho_ ghp_ ghr_ ghs_ ghu_ github_pat_", r"\w{20,}"),
    (
        "GitLab",
        "glagent- glcbt- gldt- glffct- glft- glimt- gloas- glpat- glptt- glrt- glrtr-",
        r"[\w.-]{18,}",
    ),
    ("GitLab", "glsoat- glwt-", r"[\w.-]{18,}"),
    ("GitLab", "GR1348941", r"[\w-]{18,}"),
    ("GitLab", "_gitlab_session=", r"\w{20,}"),
    ("Atlassian", "ATATT3 ATCTT3 ATSTT3 ATBB", r"[\w=-]{24,}"),
    ("AWS", "ABIA ACCA AKIA ASIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("AWS", "A3T", "[A-Z0-9]{17}(?![A-Za-z0-9])"),
    ("AWS", "ABSK", "[A-Za-z0-9+/]{100,}={0,2}"),
    ("AWS", "bedrock-api-key-", "[A-Za-z0-9+/=_-]{20,}"),
    ("Google", "AIza 1//0", r"[\w-]{30,}"),
    ("Google", "ya29. GOCSPX-", r"[\w-]{20,}"),
    ("Google", "GOOG", "[A-Z0-9]{20,}"),
    ("OpenAI", "sk-", r"(?:proj|svcacct|service|admin|None|or-v1|lf)-[\w-]{20,}"),
    ("OpenAI", "sk-", "[A-Za-z0-9]{20,}"),
    ("Anthropic", "sk-ant-", r"[\w-]{20,}"),
    ("Hugging Face", "hf_ api_org_", "[A-Za-z0-9]{20,}"),
    ("NVIDIA", "nvapi-", r"[\w-]{20,}"),
    ("Slack", "xox", r"[abceoprs](?:\.xox[bp])?-[\w-]{10,}"),
    ("Slack", "xapp-", r"\d-[\w-]{10,}"),
    ("Slack", "xwfp-", r"[\w-]{10,}"),
    ("Slack", "hooks.slack", r"(?:-gov)?\.com/(?:services|workflows|triggers)/[^\s\x22'<>]{4,}"),
    ("other webhooks", "hooks.zapier", r"\.com/hooks/[^\s\x22'<>]{6,}"),
    ("other webhooks", "open.", r"(?:feishu|larksuite)\.c\w+/open-apis/bot/v2/hook/[\w-]{8,}"),
    ("other webhooks", "events.pagerduty", r"\.com/integration/[^\s\x22'<>]{8,}"),
    ("Stripe", "sk_test_ sk_live_ sk_prod_ rk_test_ rk_live_ rk_prod_", "[A-Za-z0-9]{10,}"),
    ("Stripe", "whsec_", "[A-Za-z0-9+/=]{20,}"),
    ("Twilio", "AC SK", "[0-9a-f]{32}(?![A-Za-z0-9])"),
    ("SendGrid", "SG.", r"[\w-]{16,}\.[\w-]{16,}"),
    ("npm", "npm_", "[A-Za-z0-9]{30,}"),
    ("PyPI", "pypi-", r"[\w-]{50,}"),
    ("Docker Hub", "dckr_oat_ dckr_pat_", r"[\w-]{20,}"),
    ("DigitalOcean", "doo_v1_ dop_v1_ dor_v1_ dos_v1_", "[a-f0-9]{40,}"),
    ("DigitalOcean", "DO00 DO801", "[A-Z0-9]{16,}(?![A-Za-z0-9])"),
    ("Datadog", "ddapp_ ddap_ ddpat_ ddapi_ ddp_", r"\w{30,}"),
    ("New Relic", "NRAA- NRAK- NRBR- NRII- NRIQ- NRJS- NRMA- NRRA- NRSP-", r"[\w-]{15,}"),
    ("Grafana", "glsa_", r"\w{20,}"),
    ("Grafana", "glc_", "[A-Za-z0-9+/]{32,}={0,2}"),
    ("Grafana", "eyJrIjoi", "[A-Za-z0-9+/]{40,}={0,2}"),
    ("Cloudflare", "v1.0-", "[a-f0-9]{24}-[a-f0-9]{100,}"),
    ("Cloudflare", "cfat_ cfk_ cfut_", "[A-Za-z0-9]{30,}"),
    ("Cloudflare", "eyJhIjoi", r"[\w+/-]{80,}={0,2}"),
    ("Cloudflare", "0x4AAAAA", r"[\w-]{20,}"),
    ("HashiCorp", "hvb. hvr. hvs.", r"[\w-]{20,}"),
    ("Doppler", "dp.audit. dp.ct. dp.pt. dp.sa. dp.said. dp.scim. dp.st.", r"[\w.-]{30,}"),
    ("Databricks", "dapi dkea dose", r"[a-f0-9]{32}(?:-\d)?"),
    ("Weights & Biases", "wandb_v", r"\d_\w{20,}"),
    ("Weights & Biases", "local-", r"[a-f0-9]{40}(?![\w-])"),
    ("model hosts", "esecret_ fw_ gsk_ llx- pplx- r8_ xai-", "[A-Za-z0-9]{20,}"),
    ("model hosts", "csk- rpa_", "[A-Za-z0-9]{30,}"),
    ("model hosts", "lsv2_pt_ lsv2_sk_ pcsk_ tvly-", r"[\w-]{20,}"),
    ("model hosts", "tgp_v", r"\d_[\w-]{20,}"),
    ("model hosts", "jina_", r"[\w-]{40,}"),
    ("model hosts", "pa-", r"[A-Za-z0-9][\w-]{41,}(?![\w-])"),
    ("model hosts", "sk_", "[a-f0-9]{40,}"),
    ("Mailgun", "key-", "[a-f0-9]{32}(?![A-Za-z0-9])"),
    ("Brevo", "xkeysib- xsmtpsib-", r"[a-f0-9]{40,}(?:-\w+)?"),
    ("Postman", "PMAK- PMAT-", "[A-Za-z0-9]{20,}(?:-[A-Za-z0-9]+)?"),
    ("Shopify", "shpat_ shpca_ shppa_ shpss_ shpua_", "[a-fA-F0-9]{30,}"),
    ("Sentry", "sntryr_ sntrys_ sntryu_", r"[\w+/=-]{20,}"),
    ("Linear", "lin_api_ lin_oauth_ lin_wh_", r"\w{20,}"),
    ("Notion", "ntn_", "[A-Za-z0-9]{30,}"),
    ("Notion", "secret_", "[A-Za-z0-9]{43}(?![A-Za-z0-9])"),
    ("Square", "sq0atp- sq0csp-", r"[\w-]{20,}"),
    ("Square", "EAAA", r"[\w-]{50,}"),
    ("Facebook", "EAA", r"[A-Za-z]\w{90,}"),
    ("Supabase", "sbp_", "[a-f0-9]{40}"),
    ("Supabase", "sb_secret_", r"[\w-]{20,}"),
    ("PlanetScale", "pscale_oauth_ pscale_pw_ pscale_tkn_", r"[\w=.-]{20,}"),
    ("Alibaba Cloud", "LTAI", "[A-Za-z0-9]{12,}"),
    ("Tencent Cloud", "AKID", "[A-Za-z0-9]{32}"),
    ("Yandex Cloud", "AQVN", r"[\w-]{35,}"),
    ("Yandex Cloud", "t1.", r"[\w-]{20,}={0,2}\.[\w-]{60,}"),
    ("Heroku", "HRKU-", r"[\w-]{30,}"),
    ("Fly.io", "fo1_", r"[\w-]{43}"),
    ("Fly.io", "fm1a_ fm1r_ fm2_", "[A-Za-z0-9+/]{60,}={0,3}"),
    ("Netlify", "nfp_", "[A-Za-z0-9]{30,}"),
    ("Pulumi", "pul-", "[a-f0-9]{40}"),
    ("Prefect", "pnb_ pnu_", "[A-Za-z0-9]{36}"),
    ("RubyGems", "rubygems_", "[a-f0-9]{40,}"),
    ("crates.io", "cio", "[A-Za-z0-9]{32}(?![A-Za-z0-9])"),
    ("NuGet", "oy2", "[a-z0-9]{43}"),
    ("Artifactory", "AKC", "[a-zA-Z0-9]{60,}"),
    ("Artifactory", "cmVmd", "[A-Za-z0-9]{59}"),
    ("SonarQube", "sqa_ sqp_ squ_", "[a-f0-9]{40}"),
    ("Snyk", "snyk_", r"\w{2,}\.[\w.-]{20,}"),
    ("Sourcegraph", "sgp_", r"(?:\w{5,16}_)?[a-f0-9]{40}"),
    ("OpenShift", "sha256~", r"[\w-]{40,}"),
    ("Rancher", "token-", "[a-z0-9]{5}:[a-z0-9]{40,}"),
    ("Tailscale", "tskey-", r"[\w-]{15,}"),
    ("CircleCI", "CCIPAT_ CCIPRJ_", r"\w{20,}"),
    ("Buildkite", "bkaj_ bkat_ bkct_ bkpi_ bkps_ bkua_", r"\w{30,}"),
    ("HubSpot", "pat-eu1- pat-na1- pat-na2-", "[a-f0-9]{8}-[a-f0-9-]{20,}"),
    ("Airtable", "pat", r"[A-Za-z0-9]{14}\.[a-f0-9]{40,}"),
    ("Figma", "figd_ figo_ figu_", r"[\w-]{30,}"),
    ("Typeform", "tfp_", r"[\w.=-]{40,}"),
    ("Contentful", "CFPAT-", r"[\w-]{30,}"),
    ("Dropbox", "sl.", r"(?:u\.)?[\w-]{100,}"),
    ("Dynatrace", "dt0", r"[a-z]\d\d\.[A-Z0-9]{20,}\.[A-Z0-9]{30,}"),
    ("Octopus Deploy", "API-", "[A-Z0-9]{26}(?![A-Z0-9])"),
    ("LaunchDarkly", "sdk- api- mob-", "[a-f0-9]{8}-(?:[a-f0-9]{4}-){3}[a-f0-9]{12}"),
    ("EasyPost", "EZAK EZTK", "[A-Za-z0-9]{54}"),
    ("Shippo", "shippo_live_ shippo_test_", "[a-f0-9]{40}"),
    ("ReadMe", "rdme_", "[a-z0-9]{60,}"),
    ("Adobe", "p8e-", "[A-Za-z0-9]{32}"),
    ("1Password", "ops_eyJ", "[A-Za-z0-9+/]{50,}={0,3}"),
    ("1Password", "A3-", "[A-Z0-9]{6}(?:-[A-Z0-9]{5,11}){4,5}"),
    ("age", "AGE-SECRET-KEY-1", "[A-Z0-9]{50,}"),
    ("JWT", "eyJ", r"[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    ("crypt(5)", "$", r"(?:apr1|argon2id?|2[aby]?|[156y]|scrypt)\$[\w./$,=+-]{12,}"),
)
# The vendor, a literal that each of its tokens holds, and the regular expression of the whole.
OTHERS: tuple[tuple[str, str, str], ...] = (
    ("Azure", "Q~", r"[\w~.-]{3}\dQ~[\w~.-]{31,34}"),
    ("Azure", "JQQJ99", "[A-Za-z0-9]{50,60}JQQJ99[A-Za-z0-9]{20,}"),
    ("Azure", "AZDO", "[A-Za-z0-9]{70,80}AZDO[A-Za-z0-9]{4}"),
    ("Azure", "+A", r"[A-Za-z0-9+/]{30,76}\+(?:ASt|ASb|AEh|ABa|ACR|ARm|AIo)[A-Za-z0-9+/]{5,8}={0,2}"),
    ("OpenAI", "T3BlbkFJ", r"sk-[\w-]{20,80}T3BlbkFJ[\w-]{20,}"),
    ("Discord", ".", r"[MNO][\w-]{23,27}\.[\w-]{6,7}\.[\w-]{27,}"),
    ("Discord", "/api/", r"discord(?:app)?\.com/api/(?:v\d+/)?webhooks/[^\s\x22'<>]{4,}"),
    ("Microsoft Teams", "webhook.office",
     r"[\w-]{1,63}\.webhook\.office\.com/webhook(?:b2)?/[^\s\x22'<>]{8,}"),
    ("Microsoft Teams", "outlook.office", r"outlook\.office(?:365)?\.com/webhook(?:b2)?/[^\s\x22'<>]{8,}"),
    ("other webhooks", "/hooks/", r"[\w.-]{1,253}/hooks/[a-z0-9]{26}(?![\w-])"),
    ("New Relic", "NRAL", "[a-zA-F0-9]{30,36}NRAL"),
    ("HashiCorp", ".", r"(?<![\w.-])[bs]\.(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{24}(?![\w.-])"),
    ("HashiCorp", ".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{20,}"),
    ("Mailgun", "-", r"[a-f0-9]{32}-[a-f0-9]{8}-[a-f0-9]{8}(?![\w-])"),
    ("Mailchimp", "-us", r"[a-f0-9]{32}-us\d{1,2}(?!\d)"),
    ("Telegram", ":A", r"\d{5,16}:A[\w-]{34}(?![\w-])"),
    ("X", "AAAAAAAAAA", "A{20,22}[A-Za-z0-9%]{60,}"),
    ("PEM", "PRIVATE KEY",
     r"(?s:-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
     r".*?(?:-----END [A-Z0-9 ]+-----|\Z))"),
    ("PuTTY", "PuTTY-User-Key-File", r"(?s:PuTTY-User-Key-File-\d.*)"),
)  # fmt: skip


@cache
def patterns() -> dict[str, tuple[str, ...]]:
    """Return the regular expressions of the shapes, by a literal that is looked for first.

    To look for it takes a hundredth of the time, and most texts hold none. A token follows no letter and no
    digit, which whoever looks for one has to add.
    """
    found: dict[str, tuple[str, ...]] = {}
    for _, prefixes, rest in PREFIXED:
        for prefix in prefixes.split():
            found[prefix] = (*found.get(prefix, ()), re.escape(prefix) + rest)
    for _, needle, pattern in OTHERS:
        found[needle] = (*found.get(needle, ()), pattern)
    return found
