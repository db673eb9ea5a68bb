"""VJ501 to VJ508: what would leak, or could be taken over."""

import re
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from vllmjobs.balancers import balancer_of
from vllmjobs.check.arguments import SECRET_ARGUMENTS
from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.derive import argument_name, image, is_root
from vllmjobs.environment.model import Balancer, Model
from vllmjobs.environment.monitoring import PrometheusJob
from vllmjobs.environment.problems import KeyPath, Mark
from vllmjobs.environment.secret_names import holds_secret
from vllmjobs.environment.secrets import follows_option, looks_secret
from vllmjobs.vllm.releases import NEWEST

EXAMPLE_IMAGE = f"registry.example.com/vllm-openai:v{NEWEST}"
LOOKS_SECRET = "looks like a secret; put a reference to it under secrets (value not shown)"
# A tag without a digit names no version; one with a commit does.
MOVING_TAG = re.compile(r"\D*|(.*[-_.])?(latest|nightly|main|master)([-_.].*)?")
# https://github.com/distribution/reference, regexp.go
_PART = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"([A-Za-z0-9.-]+(:\d+)?/)?{_PART}(/{_PART})*(:[\w][\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?", re.ASCII
)
COMMIT = re.compile(r"(^|[-_.])[0-9a-f]{7,40}($|[-_.])")
# Folders of secrets, or of the files of others; in the last two, one further down may hold media alone.
PRIVATE = ("dev", "etc", "proc", "root", "run", "secrets", "sys", "var/run", "home", "var/lib")
SHARED = PRIVATE[-2:]


@environment_rule("VJ501", "error")
def no_secret_is_written(whole: Whole) -> Findings:
    """Find what looks like a secret, anywhere in the file, by its shape or by the name that it stands under.

    A token in the file is a token in git, in the job, and in every plan (hashicorp/nomad#14423).
    """
    environment = msgspec.to_builtins(whole.environment)
    environment.pop("defaults")  # each model has them
    if _holds_secrets(environment):
        yield from ((path, LOOKS_SECRET) for path in _secrets(environment))


@model_rule("VJ502", "error")
def secret_variables_are_references(subject: Subject) -> Findings:
    """Find a variable named like a secret, with its value. Such a variable belongs under `secrets`."""
    for name, value in subject.model.env.items():
        if value is not None and holds_secret(name, str(value)):
            yield ("env", name), LOOKS_SECRET


@environment_rule("VJ503", "error")
def images_are_pinned(whole: Whole) -> Findings:
    """Find an image without a tag that stays. Two instances then differ, and a rollback runs what failed."""
    environment = whole.environment
    images: dict[KeyPath, str] = {}
    for name, model in environment.models.items():
        if model.driver == "docker":
            at = ("models", name, "image") if model.image else ("images", model.install)
            images[at] = image(environment, model)
    if environment.balancer.image and environment.balancer.driver == "docker":
        images[("balancer", "image")] = environment.balancer.image
    prometheus = environment.monitoring.prometheus
    if prometheus and prometheus.driver == "docker":  # the caches' jobs have the models' images
        images[("monitoring", "prometheus", "image")] = prometheus.image
    for path, name in images.items():
        repository, _, digest = name.partition("@")
        tag = repository.rpartition("/")[2].partition(":")[2]
        if "${" not in name and not IMAGE.fullmatch(name):
            yield path, f"{name} is not the name of an image; write one such as {EXAMPLE_IMAGE}"
            continue
        if digest or "${" in name or COMMIT.search(tag) or not MOVING_TAG.fullmatch(tag):
            continue
        moves = f"tag {tag!r} moves" if tag else "has no tag and so means `latest`, which moves"
        yield path, f"{name}: {moves}; name a version, such as :v{NEWEST}, or a digest (@sha256:…)"


@environment_rule("VJ504", "warning")
def secret_files_are_private(whole: Whole) -> Iterator[tuple[Mark, str]]:
    """Find a file of secrets that others on the machine may read. Such a file is for its owner alone."""
    for file, mode in whole.facts.files.items():
        if mode & 0o077:
            yield Mark(file), f"may be read by others (mode {mode:03o}); chmod 600 {file}"


@environment_rule("VJ505", "warning")
def users_are_not_root(whole: Whole) -> Findings:
    """Find a server that runs as root. vLLM loads code with the model; root breaks out into the node."""
    environment = whole.environment
    tasks: dict[KeyPath, Model | Balancer | PrometheusJob] = {
        ("models", name): it for name, it in environment.models.items()
    }
    if balancer_of(environment).job:
        tasks[("balancer",)] = environment.balancer
    if environment.monitoring.prometheus:
        tasks[("monitoring", "prometheus")] = environment.monitoring.prometheus
    for path, task in tasks.items():
        if is_root(task.user):
            message = f"runs as {task.user}; leave it out (65534 in docker), or name another user"
            yield (*path, "user"), message
        elif task.driver == "raw_exec" and not task.user:
            yield (*path, "driver"), "raw_exec runs as Nomad does, most often as root; name a user"


@model_rule("VJ506", "warning")
def containers_are_not_privileged(subject: Subject) -> Findings:
    """Find a privileged container, or one that is as good as it. The nvidia runtime needs no privileges."""
    container = subject.model.container
    if container.privileged:
        message = "gives the container every device of the host; GPUs do not need it"
        yield ("container", "privileged"), message
    for index, capability in enumerate(container.cap_add):
        if capability.upper().removeprefix("CAP_") in ("ALL", "SYS_ADMIN"):
            message = f"{capability} is as good as privileged; add only what is needed"
            yield ("container", "cap_add", index), message


@model_rule("VJ507", "warning")
def root_file_system_is_read_only(subject: Subject) -> Findings:
    """Find a root file system that can be written to. What a process writes, it changes for the next."""
    if not subject.model.container.read_only:
        yield (
            ("container", "read_only"),
            "the root file system can be written to; leave it out, or state the reason: "
            "`# vllmjobs: ignore VJ507 REASON`",
        )


@model_rule("VJ508", "warning")
def clients_are_no_operators(subject: Subject) -> Findings:
    """Find a setting that gives whoever may ask a server more than answers. No key of vLLM's guards these.

    The variables are vLLM's own (vllm/envs.py); its docs/usage/security.md says what each opens.
    """
    env, args, replicas = subject.model.env, subject.model.args, subject.model.replicas
    if _is_on(env.get("VLLM_SERVER_DEV_MODE")):
        yield (
            ("env", "VLLM_SERVER_DEV_MODE"),
            "lets whoever reaches an instance run its methods (/collective_rpc) or put it to sleep; "
            "leave it out",
        )
    if _is_on(env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING")):
        yield (
            ("env", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
            "lets whoever reaches an instance load any adapter; "
            + (f"it is then at one of {replicas} instances, and " if replicas > 1 else "it is ")
            + "gone after a restart; name the adapters in args.lora-modules",
        )
    if (name := subject.written.get("allowed-local-media-path")) and _is_private(str(args[name] or "")):
        yield (
            ("args", name),
            f"{args[name]} lets whoever may ask have the server open its secrets and the files of others; "
            "name a folder that holds media alone",
        )
    name = subject.written.get("trust-remote-code")
    is_pinned = all(args.get(subject.written.get(key, "")) for key in ("revision", "code-revision"))
    if name and args[name] is True and not is_pinned and not subject.model.model.startswith(("/", ".")):
        yield (
            ("args", name),
            f"runs the code that {subject.model.model} has at the next start, whoever wrote it by then; pin "
            "it with args.revision and args.code-revision, each a commit",
        )


def _is_on(value: str | int | None) -> bool:
    return str(value or "").strip().lower() not in ("", "0", "false")


def _is_private(path: str) -> bool:
    """Tell whether a folder is, or holds, one whose files are private."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts:
        return path.startswith("/")
    folder = "".join(f"{part}/" for part in parts)
    is_above = any(f"{name}/".startswith(folder) for name in PRIVATE)
    return is_above or any(folder.startswith(f"{name}/") for name in PRIVATE if name not in SHARED)


def _holds_secrets(environment: object) -> bool:
    """Tell whether any value looks like a secret; each is tried once, as models are much alike."""
    texts: set[str] = set()
    named: set[tuple[str, str]] = set()
    lists: set[tuple[str, ...]] = set()
    left: list[object] = [
        environment
    ]  # maps and lists; each is looked at once, and most of what they hold is no text
    while left:
        value = left.pop()
        if isinstance(value, dict):
            texts.update(value)
            for key, item in value.items():
                if isinstance(item, str):
                    named.add((key, item))
                elif isinstance(item, list):
                    named.update((key, text) for text in item if isinstance(text, str))
                    left.append(item)
                elif isinstance(item, dict):
                    left.append(item)
        elif isinstance(value, list):
            lists.add(tuple(item for item in value if isinstance(item, str)))
            left.extend(item for item in value if isinstance(item, dict | list))
    texts.update(item for _, item in named)
    texts.update(word for words in lists for word in words)
    return (
        any(map(looks_secret, texts))
        or any(holds_secret(key, item) for key, item in named)
        or any(follows_option(*two) for words in lists for two in pairwise(words))
    )


def _secrets(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the places of the strings in plain data, keys too, that look like secrets."""
    if isinstance(value, str):
        if looks_secret(value):
            yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            here = (*path, key)
            if looks_secret(key) or any(_is_named(here, text) for text in _strings(item)):
                yield here
            else:
                yield from _secrets(item, here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str) and index and follows_option(value[index - 1], item):
                yield (*path, index)
            else:
                yield from _secrets(item, (*path, index))


def _is_named(path: KeyPath, value: str) -> bool:
    """Tell whether a value is a secret by its key; variables have a rule of their own, as have arguments."""
    match path:
        case ("models", _, "env", _):
            return False
        case ("models", _, "args", str() as name) if argument_name(name) in SECRET_ARGUMENTS:
            return False
    return holds_secret(str(path[-1]), value)


def _strings(value: object) -> list[str]:
    """Return a string, or those of a list, as one list."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
