"""What a person gets: a project from `init`, a schema for the editor, templates in the wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from vllmjobs.cli import main
from vllmjobs.cli.common import Selection
from vllmjobs.environment.tree import parse, plain

ROOT = Path(__file__).parents[3]


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_init_writes_a_project_that_renders_as_it_stands(tmp_path: Path) -> None:
    invoke("init", str(tmp_path / "new"))
    for name in ("dev", "staging", "prod"):
        assert invoke("render", "--project", str(tmp_path / "new"), name).startswith(
            f'job "vllm-{name}" {{\n'
        )


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/prod.yaml").write_text("mine")
    done = CliRunner().invoke(main, ["init", str(tmp_path)])
    assert (done.exit_code, (tmp_path / "envs/prod.yaml").read_text()) == (1, "mine")
    assert "prod.yaml would be overwritten" in done.stderr
    assert not (tmp_path / "envs/dev.yaml").exists()


def test_the_schema_is_valid_and_the_one_that_the_environments_name() -> None:
    schema = json.loads(invoke("schema"))
    Draft202012Validator.check_schema(schema)
    assert json.loads((ROOT / "envs/schema.json").read_text()) == schema, "vllmjobs schema >envs/schema.json"
    for path in (ROOT / "envs").glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
        tree, problems = parse(path.read_text(), str(path))
        assert tree and not problems
        Draft202012Validator(schema).validate(plain(tree))


def test_the_reference_is_made_from_the_types() -> None:
    page = invoke("schema", "--format", "markdown")
    assert (ROOT / "docs/environment.md").read_text() == page, (
        "vllmjobs schema --format markdown >docs/environment.md"
    )


def test_the_environments_are_real_and_different() -> None:
    dev, staging, prod = (Selection(name, project=ROOT).environment for name in ("dev", "staging", "prod"))
    assert [
        (m.model, m.gpus.count, m.gpu_memory_utilization, m.max_model_len) for m in dev.models.values()
    ] == [("facebook/opt-125m", 1, 0.7, 1024)]
    (chat,) = staging.models.values()
    assert (chat.model, chat.replicas) == ("microsoft/DialoGPT-medium", 2)
    assert (chat.gpu_memory_utilization, chat.max_model_len) == (0.8, 1024)
    assert {m.strategy for m in prod.models.values()} == {"multi_instance", "tensor_parallel"}
    assert {(m.gpu_memory_utilization, m.max_model_len) for m in prod.models.values()} == {(0.95, 4096)}


def test_out_writes_every_job_one_file_each(tmp_path: Path) -> None:
    invoke("render", "--project", str(ROOT), "prod", "--out", str(tmp_path / "deep/out"))
    assert sorted(path.name for path in (tmp_path / "deep/out").iterdir()) == [
        "fabio.nomad.hcl",
        "prefetch.nomad.hcl",
        "vllm.nomad.hcl",
    ]


@pytest.mark.parametrize("arguments", [[], ["render"], ["render", "prod", "--nope"], ["nope"]])
def test_a_wrong_command_line_is_exit_1_since_2_means_changes(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (["render", "dev", "--project", str(ROOT), "--out"], ["init"]):
        done = CliRunner().invoke(main, [*command, f"{tmp_path}/file/out"])
        assert done.exit_code == 1
        assert done.stderr.startswith(f"{tmp_path}/file/out")
        assert done.stderr.endswith(": Not a directory\n")


def test_a_reader_that_stops_reading_ends_it_quietly() -> None:
    command = f"{sys.executable} -m vllmjobs render --project {ROOT} prod | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ('job "vllm-prod" {\n', "")


def test_a_full_disk_is_named() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vllmjobs", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "standard output: No space left on device\n")


@pytest.mark.parametrize("broken", ["folder", "link", "bytes"])
def test_a_broken_template_of_the_users_is_not_passed_over(tmp_path: Path, broken: str) -> None:
    template = tmp_path / "jobs/vllm.nomad.hcl.j2"
    template.parent.mkdir()
    match broken:
        case "folder":
            template.mkdir()
        case "link":
            template.symlink_to("nowhere")
        case "bytes":
            template.write_bytes(b"job \xff")
    environment = str(ROOT / "envs/dev.yaml")
    done = CliRunner().invoke(main, ["render", environment, "--project", str(tmp_path)])
    assert done.exit_code == 1
    assert str(template) in done.stderr


def test_templates_can_be_had_to_change_them(tmp_path: Path) -> None:
    invoke("init", str(tmp_path), "--templates")
    template = tmp_path / "jobs/vllm.nomad.hcl.j2"
    template.write_text(template.read_text().replace('type = "service"', 'type = "batch"'))
    assert 'type        = "batch"' in invoke("render", "--project", str(tmp_path), "dev")


def test_a_sound_environment_waits_for_no_import_that_it_does_not_need() -> None:
    code = (
        "import sys; from vllmjobs.cli import main; "
        f"main(['render', '--project', {str(ROOT)!r}, 'prod'], standalone_mode=False); "
        "print(sorted({'jsonschema', 'difflib', 'requests', 'httpx', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("}\n[]\n")


def test_rendering_twice_gives_the_same_bytes() -> None:
    command = [sys.executable, "-m", "vllmjobs", "render", "--project", str(ROOT), "prod"]
    outputs = {
        subprocess.run(command, capture_output=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_what_the_wheel_holds_is_enough_to_start_a_project(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    assert (tmp_path / "installed/vllmjobs/py.typed").exists()

    def vllmjobs(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vllmjobs", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    vllmjobs("init", "new", "--templates")
    for folder in ("envs", "jobs"):
        names = {path.name for path in (ROOT / folder).iterdir()} - {"every-key.yaml"}
        assert {path.name for path in (tmp_path / "new" / folder).iterdir()} == names
    (tmp_path / "new/jobs/vllm.nomad.hcl.j2").unlink()  # the shipped one is as good
    assert vllmjobs("render", "--project", "new", "prod") == invoke("render", "--project", str(ROOT), "prod")
    assert vllmjobs("check", "--project", "new") == ""  # tables of vLLM, models and GPUs are there
    assert vllmjobs("explain", "VJ104").startswith("# VJ104 ")


def test_an_environment_is_a_plain_value_that_prints_whole() -> None:
    environment = Selection("prod", project=ROOT).environment
    assert msgspec.convert(msgspec.to_builtins(environment), type(environment)) == environment
