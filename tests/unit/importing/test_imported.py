"""`vllmjobs import`: a file of balanced-vllm-docker, to an environment that says the same."""

import io
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from dotenv.parser import parse_stream
from hypothesis import assume, given
from hypothesis import strategies as st

from vllmjobs.cli import main
from vllmjobs.cli.common import Selection
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.problems import InvalidEnvironmentError
from vllmjobs.environment.tree import Scalar, parse
from vllmjobs.importing.dotenv import read
from vllmjobs.importing.imported import Imported, imported
from vllmjobs.importing.settings import VARIABLES
from vllmjobs.importing.text import scalar
from vllmjobs.project.templates import templates
from vllmjobs.render.job import jobs, render

BASE = (Path(__file__).parents[3] / "envs/base.yaml").read_text()
TOKEN = "hf_" + "abcdefghij" * 3

# Every `.env` that the README of balanced-vllm-docker shows, by its heading.
README = {
    "Basic Setup": """\
# .env
VLLM_MODEL=microsoft/DialoGPT-medium
VLLM_MODEL_NAME=dialogue
VLLM_STRATEGY=multi_instance
""",
    "Large Model with Tensor Parallelism": """\
# .env
VLLM_MODEL=meta-llama/Llama-2-13b-chat-hf
VLLM_MODEL_NAME=llama-13b
VLLM_STRATEGY=tensor_parallel
VLLM_MAX_MODEL_LEN=4096
VLLM_GPU_MEMORY_UTILIZATION=0.95
HF_TOKEN=your_hugging_face_token
""",
    "H100 GPT-OSS Production Setup": """\
# .env - Optimized for H100 clusters
VLLM_INSTALL_TYPE=gptoss
VLLM_MODEL=meta-llama/Llama-2-70b-chat-hf
VLLM_MODEL_NAME=llama-70b-gptoss
VLLM_STRATEGY=multi_instance
VLLM_GPU_MEMORY_UTILIZATION=0.95
VLLM_MAX_MODEL_LEN=4096
HF_TOKEN=your_hugging_face_token
""",
    "H100 Tensor Parallel for Massive Models": """\
# .env - For 70B+ models across H100 cluster
VLLM_INSTALL_TYPE=gptoss
VLLM_MODEL=meta-llama/Llama-2-70b-chat-hf
VLLM_MODEL_NAME=llama-70b-distributed
VLLM_STRATEGY=tensor_parallel
VLLM_GPU_MEMORY_UTILIZATION=0.98
VLLM_MAX_MODEL_LEN=8192
HF_TOKEN=your_hugging_face_token
""",
    "Development with Limited GPUs": """\
# .env
VLLM_MODEL=facebook/opt-350m
VLLM_MODEL_NAME=opt-350m
VLLM_GPU_COUNT=1
VLLM_STRATEGY=multi_instance
""",
    "Port Configuration": "NGINX_PORT=8080\n",
    "Memory Optimization": """\
# .env
VLLM_GPU_MEMORY_UTILIZATION=0.95  # Use more GPU memory
VLLM_MAX_MODEL_LEN=8192          # Longer sequences
""",
    "4 GPUs": "VLLM_GPU_COUNT=4  # or auto-detected\nVLLM_STRATEGY=multi_instance\n",
    "8x H100 Enterprise Cluster": """\
VLLM_INSTALL_TYPE=gptoss
VLLM_GPU_COUNT=8
VLLM_STRATEGY=tensor_parallel
VLLM_MODEL=meta-llama/Llama-2-70b-chat-hf
VLLM_GPU_MEMORY_UTILIZATION=0.98
""",
    "Multi-Node H100 Setup": """\
VLLM_INSTALL_TYPE=gptoss
VLLM_GPU_COUNT=16  # 2 nodes × 8 H100s each
VLLM_STRATEGY=tensor_parallel
VLLM_MODEL=meta-llama/Llama-2-70b-chat-hf
VLLM_GPU_MEMORY_UTILIZATION=0.95
""",
    "Port Conflicts": "VLLM_BASE_PORT=9000\n",
    ".env.example": """\
HF_TOKEN=your_hugging_face_token_here

VLLM_MODEL=facebook/opt-125m
VLLM_MODEL_NAME=opt-125m
VLLM_STRATEGY=multi_instance
# VLLM_GPU_COUNT=2

VLLM_HOST=0.0.0.0
VLLM_BASE_PORT=8000
VLLM_MAX_MODEL_LEN=2048
VLLM_GPU_MEMORY_UTILIZATION=0.80
VLLM_INSTALL_TYPE=standard""",
}
PROD = """\
# .env.prod
export VLLM_MODEL="meta-llama/Llama-3.1-8B-Instruct"
VLLM_MODEL_NAME=Llama_3.1
VLLM_STRATEGY=multi_instance
VLLM_GPU_COUNT=4
VLLM_HOST=0.0.0.0
VLLM_BASE_PORT=9000
VLLM_MAX_MODEL_LEN=4096
VLLM_GPU_MEMORY_UTILIZATION=0.98 # as the README has it
NGINX_PORT=8080
DATA=/srv
MODEL_CACHE_PATH=${DATA}/models
HF_TOKEN=hf_abcdefghijabcdefghijabcdefghij
CUDA_VISIBLE_DEVICES=0,1,2,3
COMPOSE_PROJECT_NAME=vllm
VLLM_MAX_MODEL_LENGTH=1
DEBUG=true
"""


def environment_of(text: str, folder: Path, base: str | None = BASE) -> Environment:
    """What an imported file says, read and rendered as any other."""
    (folder / "envs").mkdir(exist_ok=True)
    if base is not None:
        (folder / "envs/base.yaml").write_text(base)
    path = folder / "envs/prod.yaml"
    path.write_text(text)
    environment = Selection(str(path), project=folder).environment
    for job in jobs(environment):
        render(environment, job, templates(folder))
    return environment


def from_env(text: str, folder: Path) -> tuple[Model, list[str]]:
    """The one model of an imported file, and its notes without the name of the file."""
    result = imported(text, ".env", "prod", "base.yaml")
    (model,) = environment_of(result.text, folder).models.values()
    return model, [str(note).removeprefix(".env:") for note in result.notes]


def refused(text: str) -> list[str]:
    with pytest.raises(InvalidEnvironmentError) as error:
        imported(text, ".env", "prod", None)
    return str(error.value).splitlines()


# The whole of it.


def test_an_env_file_becomes_an_environment_that_names_where_each_value_came_from(tmp_path: Path) -> None:
    result = imported(PROD, ".env.prod", "prod", "base.yaml")
    assert (
        result.text
        == """\
# yaml-language-server: $schema=schema.json
# Imported from balanced-vllm-docker; each comment names the variable or field that a value came from.
extends: base.yaml
job: vllm-prod
debug: true # DEBUG

balancer:
  kind: nginx
  port: 8080 # NGINX_PORT

models:
  llama-3-1:
    model: meta-llama/Llama-3.1-8B-Instruct # VLLM_MODEL
    served_name: Llama_3.1 # VLLM_MODEL_NAME
    strategy: multi_instance # VLLM_STRATEGY
    replicas: 4 # VLLM_GPU_COUNT
    gpus:
      count: 1
    gpu_memory_utilization: 0.95 # VLLM_GPU_MEMORY_UTILIZATION
    max_model_len: 4096 # VLLM_MAX_MODEL_LEN
    ports:
      host: "0.0.0.0" # VLLM_HOST
      base: 9000 # VLLM_BASE_PORT
    cache:
      bind: /srv/models # MODEL_CACHE_PATH
    secrets:
      HF_TOKEN: nomad/jobs/vllm-prod#hf_token # where it is kept, never what it is
"""
    )
    assert [str(note).removeprefix(".env.prod:") for note in result.notes] == [
        "9:1: VLLM_GPU_MEMORY_UTILIZATION 0.98 is lowered to 0.95; 0.1 to 0.95 is valid",
        "11:1: DATA is no variable of balanced-vllm-docker; if the server reads it, "
        "write it under models.llama-3-1.env",
        "12:1: MODEL_CACHE_PATH must exist on every node, writable for user 65534; "
        "its hub/ is now huggingface/hub/: move it, or models are downloaded again",
        "13:1: HF_TOKEN is not copied; type its value into: "
        'read -rs value && printf %s "$value" | nomad var put nomad/jobs/vllm-prod hf_token=-',
        "14:1: CUDA_VISIBLE_DEVICES is not carried over: vLLM gets the GPUs that Nomad reserved",
        "15:1: COMPOSE_PROJECT_NAME is not carried over: it is for Docker, and Nomad runs the containers",
        "16:1: VLLM_MAX_MODEL_LENGTH is no variable of balanced-vllm-docker (did you mean "
        "VLLM_MAX_MODEL_LEN?); if the server reads it, write it under models.llama-3-1.env",
    ]
    environment_of(result.text, tmp_path)


def test_every_example_of_its_readme_is_imported(tmp_path: Path) -> None:
    found = {heading: from_env(text, tmp_path)[0] for heading, text in README.items()}
    text = {
        heading: (
            model.model,
            model.served_name,
            model.strategy,
            model.install,
            model.replicas,
            model.gpus.count,
        )
        for heading, model in found.items()
    }
    opt, llama = "facebook/opt-125m", "meta-llama/Llama-2-70b-chat-hf"
    multi, tensor = "multi_instance", "tensor_parallel"
    assert text == {
        "Basic Setup": ("microsoft/DialoGPT-medium", "dialogue", multi, "standard", 1, 1),
        "Large Model with Tensor Parallelism": (
            *("meta-llama/Llama-2-13b-chat-hf", "llama-13b", tensor, "standard", 1, 1),
        ),
        "H100 GPT-OSS Production Setup": (llama, "llama-70b-gptoss", multi, "gptoss", 1, 1),
        "H100 Tensor Parallel for Massive Models": (llama, "llama-70b-distributed", tensor, "gptoss", 1, 1),
        "Development with Limited GPUs": ("facebook/opt-350m", "opt-350m", multi, "standard", 1, 1),
        "Port Configuration": (opt, "opt-125m", multi, "standard", 1, 1),
        "Memory Optimization": (opt, "opt-125m", multi, "standard", 1, 1),
        "4 GPUs": (opt, "opt-125m", multi, "standard", 4, 1),
        "8x H100 Enterprise Cluster": (llama, "opt-125m", tensor, "gptoss", 1, 8),
        "Multi-Node H100 Setup": (llama, "opt-125m", tensor, "gptoss", 1, 16),
        "Port Conflicts": (opt, "opt-125m", multi, "standard", 1, 1),
        ".env.example": (opt, "opt-125m", multi, "standard", 1, 1),
    }
    limits = {model.gpu_memory_utilization for model in found.values()}
    assert limits == {0.8, 0.95}
    assert found["Port Conflicts"].ports.base == 9000


def test_without_a_base_the_file_stands_alone(tmp_path: Path) -> None:
    result = imported(PROD, ".env", "prod", None)
    assert "extends" not in result.text
    assert environment_of(result.text, tmp_path, base=None).balancer.kind == "nginx"


# What each variable becomes.


def test_what_is_not_set_or_empty_is_what_compose_would_fill_in(tmp_path: Path) -> None:
    model, _ = from_env("VLLM_MODEL=a/b\nVLLM_MAX_MODEL_LEN=\n", tmp_path)
    assert (model.max_model_len, model.gpu_memory_utilization, model.served_name) == (2048, 0.8, "opt-125m")


def test_gpus_are_replicas_or_gpus_of_one_server_by_the_strategy(tmp_path: Path) -> None:
    model, _ = from_env("VLLM_GPU_COUNT=3", tmp_path)
    assert (model.replicas, model.gpus.count) == (3, 1)
    model, _ = from_env("VLLM_GPU_COUNT=4\nVLLM_STRATEGY=Tensor_Parallel", tmp_path)
    assert (model.replicas, model.gpus.count) == (1, 4)


@pytest.mark.parametrize("count", ["auto", "all", "0"])
def test_every_gpu_of_the_box_becomes_one_and_a_note_how_to_choose(tmp_path: Path, count: str) -> None:
    model, notes = from_env(f"VLLM_GPU_COUNT={count}\n", tmp_path)
    assert (model.replicas, model.gpus.count) == (1, 1)
    assert notes == [
        "1:1: VLLM_GPU_COUNT asks for every GPU of the box; 1 is written instead: "
        "set replicas to the number of servers"
    ]


def test_more_gpus_than_a_box_has_are_said_to_be_of_one_node(tmp_path: Path) -> None:
    _, notes = from_env(README["Multi-Node H100 Setup"], tmp_path)
    assert notes == ["2:1: VLLM_GPU_COUNT is 16, all on one node: a server cannot span nodes here"]


@pytest.mark.parametrize(
    ("given", "taken"), [("0.98", 0.95), ("1", 0.95), ("0.05", 0.1), (".5", 0.5), ("0.80", 0.8)]
)
def test_a_share_of_memory_out_of_range_is_moved_into_it(tmp_path: Path, given: str, taken: float) -> None:
    model, notes = from_env(f"VLLM_GPU_COUNT=1\nVLLM_GPU_MEMORY_UTILIZATION={given}\n", tmp_path)
    assert model.gpu_memory_utilization == taken
    assert bool(notes) == (float(given) != taken)


def test_a_loopback_address_is_left_out_as_nothing_would_reach_it(tmp_path: Path) -> None:
    model, notes = from_env("VLLM_HOST=127.0.0.1\nVLLM_GPU_COUNT=1", tmp_path)
    assert model.ports.host is None
    assert notes[0].startswith("1:1: VLLM_HOST is left out")


def test_a_relative_cache_is_left_out_and_an_absolute_one_kept(tmp_path: Path) -> None:
    model, notes = from_env("MODEL_CACHE_PATH=./models\nVLLM_GPU_COUNT=1", tmp_path)
    assert model.cache and model.cache.bind == "/srv/models"  # base.yaml's
    assert notes[0].startswith("1:1: MODEL_CACHE_PATH is left out, as it is no absolute path")
    model, _ = from_env("MODEL_CACHE_PATH=/data/llm cache", tmp_path)
    assert model.cache and model.cache.bind == "/data/llm cache"


def test_the_port_of_nginx_is_the_balancers_wherever_its_status_page_is(tmp_path: Path) -> None:
    text = imported("NGINX_PORT=9998", ".env", "prod", "base.yaml").text
    balancer = environment_of(text, tmp_path).balancer
    assert (balancer.kind, balancer.port, balancer.admin_port) == ("nginx", 9998, 9997)


def test_a_name_that_no_model_may_have_becomes_the_nearest_that_one_may(tmp_path: Path) -> None:
    for name, group in {"Llama_3.1": "llama-3-1", "漢字": "model", "x" * 99: "x" * 53, "a/b": "b"}.items():
        text = imported(f"VLLM_MODEL_NAME={name}", ".env", "prod", "base.yaml").text
        assert list(environment_of(text, tmp_path).models) == [group]


@pytest.mark.parametrize(
    "line",
    [
        "VLLM_STRATEGY=both",
        "VLLM_INSTALL_TYPE=nightly",
        "VLLM_GPU_COUNT=two",
        "VLLM_BASE_PORT=65536",
        "NGINX_PORT=http",
        "VLLM_MAX_MODEL_LEN=4k",
        "VLLM_GPU_MEMORY_UTILIZATION=80",
        "VLLM_GPU_MEMORY_UTILIZATION=nan",
    ],
)
def test_a_value_without_a_meaning_is_refused_with_its_line_and_what_it_must_be(line: str) -> None:
    name, _, value = line.partition("=")
    (problem,) = refused(f"# comment\n{line}\n")
    assert problem.startswith(f".env:2:1: {name} must be ")
    assert problem.endswith(f"(got {value!r})")


def test_everything_wrong_is_said_at_once() -> None:
    assert len(refused("VLLM_STRATEGY=x\nVLLM_BASE_PORT=y\n")) == 2


def test_a_file_without_a_setting_is_refused() -> None:
    for text in ("", "# nothing\n", f"HF_TOKEN={TOKEN}\n", "PATH=/bin\n"):
        (problem,) = refused(text)
        assert problem == (
            ".env: sets no variable of balanced-vllm-docker, "
            "such as VLLM_MODEL, VLLM_MODEL_NAME, VLLM_STRATEGY"
        )


def test_a_name_of_the_environment_that_no_job_may_have_is_refused() -> None:
    for name in ("", "Prod", "a--b", "../prod", "x" * 41):
        with pytest.raises(InvalidEnvironmentError, match=r"^--as: must be lower-case"):
            imported(PROD, ".env", name, None)


# Secrets.


def test_secrets_become_references_and_one_command_stores_them_all(tmp_path: Path) -> None:
    model, notes = from_env(f"VLLM_GPU_COUNT=1\nHF_TOKEN=abc\nVLLM_API_KEY='k'\nMINE={TOKEN}\n", tmp_path)
    assert model.secrets == {
        "HF_TOKEN": "nomad/jobs/vllm-prod#hf_token",
        "VLLM_API_KEY": "nomad/jobs/vllm-prod#vllm_api_key",
        "MINE": "nomad/jobs/vllm-prod#mine",
    }
    assert notes == [
        "2:1: HF_TOKEN, VLLM_API_KEY, MINE are not copied; type their values into: "
        "read -rs hf_token && read -rs vllm_api_key && read -rs mine && "
        'nomad var put nomad/jobs/vllm-prod hf_token=@<(printf %s "$hf_token") '
        'vllm_api_key=@<(printf %s "$vllm_api_key") mine=@<(printf %s "$mine")'
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"VLLM_MODEL={TOKEN}",
        f"HF_TOKEN={TOKEN}\nVLLM_MODEL_NAME=x-$HF_TOKEN",
        "HF_TOKEN=hunter2hunter2\nOTHER=${HF_TOKEN}\nHF_TOKEN=new\nMODEL_CACHE_PATH=/$OTHER",
        f"VLLM_GPU_COUNT={TOKEN}",
        f"VLLM_STRATEGY='{TOKEN}",
        f"chat:8000:{TOKEN}:auto:2048:1",
    ],
)
def test_a_secret_in_a_place_for_none_is_refused_and_not_shown(text: str) -> None:
    text = "\n".join(refused(text))
    assert TOKEN not in text and "hunter2" not in text


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN {TOKEN}",
        f"{TOKEN}=\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC=\n",
        f"CUDA_VISIBLE_DEVICES={TOKEN}",
        f"Mixed_Token={TOKEN}",
        f"HF_TOKEN: {TOKEN}",
        f"{TOKEN}",
        f"export {TOKEN}",
        f"A=$(echo {TOKEN})\nB=${{{TOKEN}}}",
    ],
)
def test_a_secret_on_a_line_that_says_something_else_is_not_shown(text: str, tmp_path: Path) -> None:
    result = imported(f"VLLM_GPU_COUNT=1\n{text}\n", ".env", "prod", None)
    text = f"{result.text}{result.notes}"
    assert TOKEN not in text and "MIIE" not in text
    environment_of(result.text, tmp_path)


# Reading.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=b", "b"),
        ("  export\tA = b  ", "b"),
        ("A=b # comment", "b"),
        ("A=b#no comment", "b#no comment"),
        ("A= # comment", ""),
        ("A=", ""),
        ("A=b=c", "b=c"),
        ("A=it's", "it's"),
        ("A='b # c' # comment", "b # c"),
        (r"A='\n$B${B}\'s'", r"\n$B${B}'s"),
        (r'A="b\n\"c\"\\\q"', 'b\n"c"\\\\q'),
        ('A="b\nc=d\n"', "b\nc=d\n"),
        ("A='b\nc'", "b\nc"),
        ("B=x\nA=$B-${B}-${B:-y}-${B-y}", "x-x-x-x"),
        ("B=\nA=${B:-y}-${B-z}-$B", "y--"),
        ("A=${B:-y}${B-z}", "yz"),
        ('B=x\nA="\\$B $$B $B"', "$B $B x"),
        ("A=5$", "5$"),
        ("A=$(id)", "$(id)"),
        ("A=b\nA=${A}c", "bc"),
    ],
)
def test_a_value_is_read_as_compose_reads_it(text: str, value: str) -> None:
    found = read(text, ".env")
    assert not found.problems
    assert found.variables["A"].value == value


def test_crlf_and_a_byte_order_mark_are_no_reason_to_stop(tmp_path: Path) -> None:
    model, _ = from_env("\ufeffVLLM_MODEL=a/b\r\nVLLM_GPU_COUNT=2\r\n", tmp_path)
    assert (model.model, model.replicas) == ("a/b", 2)


def test_the_process_own_variables_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_MODEL", "from/outside")
    model, notes = from_env("VLLM_GPU_COUNT=1\nVLLM_MODEL_NAME=x${VLLM_MODEL}\nVLLM_MODEL", tmp_path)
    assert (model.model, model.served_name) == ("facebook/opt-125m", "x")
    assert notes == [
        "2:1: VLLM_MODEL_NAME refers to VLLM_MODEL, which is not set above it; taken as empty",
        "3:1: VLLM_MODEL has no value, so Compose takes it from the shell; it is left out",
    ]


def test_of_two_equal_names_the_last_counts(tmp_path: Path) -> None:
    model, notes = from_env("VLLM_GPU_COUNT=2\n\nVLLM_GPU_COUNT=3\n", tmp_path)
    assert model.replicas == 3
    assert notes == ["3:1: VLLM_GPU_COUNT is set again (first on line 1); this one counts"]


def test_a_line_that_is_no_assignment_is_named(tmp_path: Path) -> None:
    _, notes = from_env("VLLM_GPU_COUNT=2\n\n  VLLM_MODEL: a/b\n[section]\n", tmp_path)
    assert notes == [f"{at}: is not of the form NAME=VALUE, and is left out" for at in ("3:3", "4:1")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('VLLM_GPU_COUNT=1\nA="b\nc', ".env:2:1: A has a quote that is not closed"),
        ("A='b'c", ".env:1:1: A has more text after its closing quote"),
        ("VLLM_MODEL=${A:?b}", ".env:1:1: VLLM_MODEL: write ${NAME}, ${NAME:-default} or ${NAME-default}; "),
        ("VLLM_MODEL=a\0b", ".env:1:13: holds the character U+0000; save the file as UTF-8 text"),
        ("VLLM_MODEL=\udcff", ".env:1:12: byte 0xff is not valid UTF-8; save the file as UTF-8 text"),
        ("VLLM_MODEL=e\u0301", ".env:1:1: VLLM_MODEL is not in Unicode's normal form NFC; type it anew"),
        ("A=" + "x" * 20_000 + "\nB=$A$A", ".env:2:1: B is longer than 32,768 characters"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, problem: str) -> None:
    assert refused(text)[0].startswith(problem)


LETTERS = st.text(st.sampled_from("ab1 \t#'\"\\=\nn"), max_size=12)
BARE = LETTERS.map(lambda text: text.replace("\n", "").lstrip(" \t'\""))
QUOTED = st.sampled_from("'\"").flatmap(
    lambda quote: LETTERS.map(
        lambda text: quote + text.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote
    )
)
LINE = st.builds(
    "{}{}{}={}{}{}".format,
    *(st.sampled_from(["", "export ", " "]), st.sampled_from("ABC"), st.sampled_from(["", " "])),
    *(st.sampled_from(["", " "]), BARE | QUOTED, st.sampled_from(["", " ", " # comment"])),
)


@given(st.lists(LINE | st.sampled_from(["", "# comment", "  "]), max_size=5).map("\n".join))
def test_python_dotenv_reads_the_same_where_no_dollar_is(text: str) -> None:
    found = read(text, ".env")
    assume(not found.problems)
    expected = {binding.key: binding.value for binding in parse_stream(io.StringIO(text)) if binding.key}
    assert {name: variable.value for name, variable in found.variables.items()} == expected


# instances.config.

INSTANCES = """\
# name:port:model:device:max_len:tp
instance1:8000:microsoft/DialoGPT-medium:0:1024:1
instance2:8001:microsoft/DialoGPT-medium:1:1024:1

Big_One:8002:meta-llama/Llama-2-70b-chat-hf:2,3:4096:2
tiny:8003:facebook/opt-125m:cpu:512:1
"""


def test_an_instances_config_becomes_a_model_for_each_distinct_line(tmp_path: Path) -> None:
    result = imported(INSTANCES, "instances.config", "prod", "base.yaml")
    models = environment_of(result.text, tmp_path).models
    text = {
        name: (
            m.served_name,
            m.strategy,
            m.replicas,
            m.gpus.count,
            m.max_model_len,
            m.route.path,
            m.route.strip,
        )
        for name, m in models.items()
    }
    multi, tensor = "multi_instance", "tensor_parallel"
    assert text == {
        "instance1": ("instance1", multi, 2, 1, 1024, "/instance1/v1/", "/instance1"),
        "big-one": ("Big_One", tensor, 1, 2, 4096, "/big-one/v1/", "/big-one"),
        "tiny": ("tiny", multi, 1, 1, 512, "/tiny/v1/", "/tiny"),
    }
    assert (
        "\n".join(map(str, result.notes))
        == """\
instances.config:2:1: instance1: /v1/ also led to it, and now leads to no model
instances.config:2:1: instance1: /v1/instance1/... is now /instance1/v1/...
instances.config:2:1: instance1: DEVICE 0 is not carried over: Nomad picks the GPUs
instances.config:2:1: instance1: its port is left out, as are all others: Nomad picks the ports
instances.config:3:1: instance2 is a replica of instance1, and answers to that name only
instances.config:3:1: instance2: DEVICE 1 is not carried over: Nomad picks the GPUs
instances.config:5:1: Big_One: /v1/Big_One/... is now /big-one/v1/...
instances.config:5:1: Big_One: DEVICE 2,3 is not carried over: Nomad picks the GPUs
instances.config:6:1: tiny: /v1/tiny/... is now /tiny/v1/...
instances.config:6:1: tiny: DEVICE cpu is not carried over: every server gets a GPU"""
    )


def test_one_instance_keeps_the_route_of_all_models(tmp_path: Path) -> None:
    result = imported("chat:8000:a/b:auto:2048:1", "instances.config", "prod", None)
    (model,) = environment_of(result.text, tmp_path).models.values()
    assert (model.route.path, model.route.strip) == ("/v1/", None)


def test_names_that_become_one_are_told_apart(tmp_path: Path) -> None:
    text = imported("a_b:1:m:auto:9:1\na.b:2:n:auto:9:1\nA-B:3:o:auto:9:1", "i", "prod", None).text
    assert list(environment_of(text, tmp_path).models) == ["a-b", "a-b-2", "a-b-3"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a:1:m:auto:2048", "must be NAME:PORT:MODEL:DEVICE:MAX_LEN:TP (has 5 of these 6 fields)"),
        ("a:1::auto:2048:1", "has no MODEL; a line is NAME:PORT:MODEL:DEVICE:MAX_LEN:TP"),
        ("a:1:m:tpu:2048:1", "DEVICE must be auto, cpu or the numbers of GPUs, such as 0,1 (got 'tpu')"),
        ("a:1:m:auto:long:1", "MAX_LEN must be a whole number from 1 to 1000000000 (got 'long')"),
        ("a:1:m:auto:2048:65", "TP must be a whole number from 1 to 64 (got '65')"),
        ("a:1:e\u0301:auto:2048:1", "is not in Unicode's normal form NFC; type it anew"),
    ],
)
def test_a_line_that_is_no_instance_is_refused_with_what_it_must_be(line: str, problem: str) -> None:
    assert refused(f"b:1:m:auto:2048:1\n{line}") == [f".env:2:1: {problem}"]


# Whatever it holds.

TROUBLE = st.sampled_from(
    [*"'\"\\$#=:{}%\n\t ~!&*|>@`", "${", "$$", "${A:-b}", " #", ": ", "- ", "[[", "[%", "{{", "é", "漢", "🦜"]
)
WORDS = ["null", "true", "0o17", "1e3", "08", "0x1f", "---", "...", "<<", "\u2028", "\x85", "\ufeff", "\x1b"]
HOSTILE = st.text(max_size=8) | st.lists(TROUBLE | st.sampled_from(WORDS), max_size=6).map("".join)
SENSIBLE = {
    "VLLM_MODEL": ["a/b", "/models/a b"],
    "VLLM_STRATEGY": ["multi_instance", "tensor_parallel"],
    "VLLM_GPU_COUNT": ["auto", "1", "16"],
    "VLLM_BASE_PORT": ["9000"],
    "VLLM_GPU_MEMORY_UTILIZATION": ["0.9", "0.98", ".01"],
    "NGINX_PORT": ["80", "9998"],
    "MODEL_CACHE_PATH": ["/srv/models", "./models"],
    "CUDA_VISIBLE_DEVICES": ["0,1"],
}
SECRETS = ["hf_" + "s3cr3t" * 6, "sk-" + "s3cr3t" * 6]
SOUND = st.sampled_from([f"{name}={value}" for name, values in SENSIBLE.items() for value in values])
SECRET = st.builds(
    "{}={}".format, st.sampled_from(["HF_TOKEN", "VLLM_API_KEY", "Mixed"]), st.sampled_from(SECRETS)
)
# Free text goes where it may stand, and anything else anywhere.
FREE = st.sampled_from(["VLLM_MODEL", "VLLM_MODEL_NAME", "VLLM_HOST", "MODEL_CACHE_PATH", "OTHER", "DEBUG"])
QUOTES = st.sampled_from(["'{}'", '"{}"', "{}", "'/{}'"])
TEXT = st.builds(
    lambda name, quotes, text: (
        f"{name}={quotes.format(text.replace(chr(92), chr(92) * 2).replace(quotes[0], ''))}"
    ),
    *(FREE, QUOTES, HOSTILE),
)
NAMES = st.sampled_from([*VARIABLES, "HF_TOKEN", "OTHER", "Mixed"])
STYLES = st.sampled_from(["{}={}", "{}='{}'", '{}="{}"', "export {}={}", "{} = {} # c", "{} {}", "{}: {}"])
VALUES = HOSTILE | st.sampled_from([*SECRETS, "$HF_TOKEN", "${VLLM_API_KEY:-x}", "$OTHER"])
ANYTHING = st.builds(str.format, STYLES, NAMES, VALUES)
ENV_FILES = st.lists(SOUND | SOUND | SECRET | TEXT, min_size=1, max_size=8) | st.lists(
    SOUND | SECRET | TEXT | ANYTHING, min_size=1, max_size=8
)
INSTANCE_FILES = st.lists(
    st.tuples(
        *[HOSTILE | st.sampled_from(["a", "b/c", "8000"])] * 3,
        *(st.sampled_from(["auto", "cpu", "0,1"]), st.just("2048"), st.sampled_from(["1", "2", "99"])),
    ).map(":".join),
    min_size=1,
    max_size=4,
)


@given((ENV_FILES | INSTANCE_FILES).map("\n".join))
def test_any_file_becomes_a_valid_environment_or_is_refused_with_its_lines(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    result: Imported | None = None
    try:
        result = imported(text, ".env", "prod", "base.yaml")
        text = result.text + "\n".join(map(str, result.notes))
    except InvalidEnvironmentError as error:
        text = str(error)
        assert all(problem.mark.line or "sets no variable" in problem.message for problem in error.problems)
    assert not any(secret in text for secret in SECRETS)
    assert "s3cr3t" not in text
    if result:
        try:
            environment_of(result.text, tmp_path_factory.getbasetemp())
        except InvalidEnvironmentError as error:
            # What the model could not do there either: 16 GPUs do not divide its 12 heads.
            assert {problem.rule for problem in error.problems} <= {"VJ211", "VJ212", "VJ213"}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | HOSTILE)
def test_any_string_is_read_back_from_yaml_as_it_was(text: str) -> None:
    assume("\0" not in text and unicodedata.is_normalized("NFC", text))
    node, problems = parse(f"{scalar(text)} # comment\n", "")
    assert isinstance(node, Scalar) and node.value == text and not problems


# The command.


def project(folder: Path, text: str | bytes = PROD) -> Path:
    (folder / "envs").mkdir()
    (folder / "envs/base.yaml").write_text(BASE)
    file = folder / ".env.prod"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(0o600)
    return file


def test_import_writes_the_environment_and_says_what_comes_next(tmp_path: Path) -> None:
    file = project(tmp_path)
    done = CliRunner().invoke(main, ["import", str(file), "--as", "prod", "--project", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, "")
    expected = imported(PROD, str(file), "prod", "base.yaml")
    assert (tmp_path / "envs/prod.yaml").read_text() == expected.text
    assert done.stderr.splitlines() == [
        *map(str, expected.notes),
        f"wrote {tmp_path}/envs/prod.yaml",
        f"next: vllmjobs check prod --project {tmp_path}",
    ]


def test_import_overwrites_nothing_unless_forced(tmp_path: Path) -> None:
    arguments = ["import", str(project(tmp_path)), "--as", "prod", "--project", str(tmp_path)]
    (tmp_path / "envs/prod.yaml").write_text("mine")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert done.stderr == f"Error: {tmp_path}/envs/prod.yaml exists; --force overwrites it\n"
    assert (tmp_path / "envs/prod.yaml").read_text() == "mine"
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    assert "VLLM_MODEL" in (tmp_path / "envs/prod.yaml").read_text()


def test_import_prints_with_a_dash_and_reads_stdin(tmp_path: Path) -> None:
    arguments = ["import", "-", "--as", "-", "--project", str(tmp_path)]
    done = CliRunner().invoke(main, arguments, input="VLLM_MODEL=a/b\nVLLM_GPU_COUNT=1\n")
    assert done.exit_code == 0
    assert done.stdout == imported("VLLM_MODEL=a/b\nVLLM_GPU_COUNT=1", "", "imported", None).text
    assert not (tmp_path / "envs").exists()


def test_import_of_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["import", "/dev/zero", "--as", "x", "--project", str(tmp_path)])
    assert (done.exit_code, done.output) == (
        1, "Error: /dev/zero is larger than 32 MiB; name the .env file itself\n",
    )  # fmt: skip


def test_each_line_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines were counted from the start for each variable: 200,000 of them took half a minute."""
    lines = 2000
    text = CountingText("".join(f"A{number}=1\n" for number in range(lines)))
    assert read(text, ".env").variables[f"A{lines - 1}"].mark.line == lines
    assert text.counted <= len(text)


class CountingText(str):
    """A text that adds up how much of it was counted."""

    counted = 0

    def count(self, sub: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        self.counted += (len(self) if end is None else end) - start
        return super().count(sub, start, end)


def test_import_of_nothing_usable_is_exit_1_and_writes_nothing(tmp_path: Path) -> None:
    file = project(tmp_path, b"VLLM_MODEL=\xff\n")
    done = CliRunner().invoke(main, ["import", str(file), "--as", "prod", "--project", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"{file}:1:12: byte 0xff is not valid UTF-8; save the file as UTF-8 text\n"
    assert not (tmp_path / "envs/prod.yaml").exists()
