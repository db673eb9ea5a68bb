import pytest

from vllmjobs.vllm.memory.gpus import gpu, gpus, nearest_names


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("nvidia h100 80gb hbm3", "NVIDIA H100 80GB HBM3"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("h100-pcie", "NVIDIA H100 PCIe"),
        ("H100 NVL", "NVIDIA H100 NVL"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
        ("a100-40gb", "NVIDIA A100-SXM4-40GB"),
        ("L40S", "NVIDIA L40S"),
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("b200", "NVIDIA B200"),
        ("Tesla T4", "Tesla T4"),
    ],
)
def test_a_gpu_is_found_by_its_nvml_name_and_by_what_people_call_it(spelt: str, name: str) -> None:
    found = gpu(spelt)
    assert found is not None
    assert found.name == name


def test_an_unknown_gpu_is_none_and_has_neighbours() -> None:
    assert gpu("H1000") is None
    assert "NVIDIA H100 80GB HBM3" in nearest_names("H1000")
    assert nearest_names("a toaster") == []


def test_every_gpu_people_rent_is_there() -> None:
    names = (
        "A10 A10G A30 A40 L4 L40 L40S H20 H200 GH200 B200 B300 GB200 GB300 T4 V100 A6000 A100-40GB "
        "RTX-3090 RTX-4090 RTX-5090 RTX-PRO-6000 RTX-6000-Ada H100-SXM H100-PCIe H100-NVL"
    )
    assert [name for name in names.split() if gpu(name) is None] == []


def test_cuda_sees_less_than_nvml_reports_and_every_number_has_a_source() -> None:
    for each in gpus():
        assert each.usable < each.memory_mib * 2**20, each.name
        assert each.usable > 0.94 * each.memory_mib * 2**20, each.name
        assert each.source, each.name
        assert set(each.estimated) <= {"memory_mib", "usable_gib", "bandwidth"}, each.name
        assert 0.2 < each.bandwidth < 10, each.name


def test_a_name_or_short_form_means_one_gpu_only() -> None:
    spelt = [name.lower() for each in gpus() for name in {each.name, *each.short}]
    assert len(spelt) == len(set(spelt))


def test_what_was_read_from_a_machine_is_told_from_what_was_inferred() -> None:
    h100, gh200 = gpu("H100"), gpu("GH200 144GB")
    assert h100 is not None
    assert not h100.estimated
    assert gh200 is not None
    assert gh200.estimated


def test_a_constraint_of_80_gib_would_leave_every_h100_out() -> None:
    h100 = gpu("H100")
    assert h100 is not None
    assert h100.memory_mib < 80 * 1024
    assert h100.compute_capability == 90
