"""`python libraries.py SITE-PACKAGES`: stands in for the NVIDIA libraries that torch's CUDA build loads.

PyPI has no build of torch without CUDA, and its libraries are 3 GB that a machine without a GPU only loads
and never calls. So each is made here, with gcc: the functions that torch's own libraries ask it for, all of
which answer cudaErrorNoDevice.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
# Run while torch is imported, or by what it asks first.
BODIES = {
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *count) { *count = 0; return 100; }",
    "cudaGetErrorString": 'const char *cudaGetErrorString(int error) { return "no device"; }',
    "cudaGetErrorName": 'const char *cudaGetErrorName(int error) { return "cudaErrorNoDevice"; }',
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "cudaPeekAtLastError": "int cudaPeekAtLastError(void) { return 0; }",
}
# Their symbols carry no version that names the library.
BY_PREFIX = {
    "nccl": "libnccl.so.2",
    "curand": "libcurand.so.10",
    "cuFile": "libcufile.so.0",
    "cusparseLt": "libcusparseLt.so.0",
    "nvshmem": "libnvshmem_host.so.3",
    "cu": "libcuda.so.1",
}
NVIDIA = re.compile(r"lib(cu|nccl|nvrtc|nvshmem|nvJitLink)\w*\.so\.\d+")


def main(packages: Path) -> None:
    """Write the libraries where torch's RPATH looks for them."""
    torch = sorted((packages / "torch/lib").glob("*.so"))
    wanted: dict[str, set[tuple[str, str]]] = {}  # library: its symbols, with their versions
    for line in read("readelf", "-dW", *torch).splitlines():
        if (needed := re.search(r"\(NEEDED\).*\[(.+)\]", line)) and NVIDIA.fullmatch(needed[1]):
            wanted.setdefault(needed[1], set())
    for line in read("nm", "-D", "--undefined-only", *torch).splitlines():
        symbol, _, version = line.split()[-1].partition("@") if line.startswith(" ") else ("", "", "")
        if version in wanted:
            wanted[version].add((symbol, version))
        elif not version or version == "NVSHMEM":
            library = next((BY_PREFIX[key] for key in BY_PREFIX if re.match(rf"_*{key}", symbol)), None)
            if library in wanted:
                wanted[library].add((symbol, version))
    folder = packages / "nvidia/cu13/lib"
    folder.mkdir(parents=True, exist_ok=True)
    for library, symbols in wanted.items():
        build(folder / library, sorted(symbols))
    print(f"{len(wanted)} libraries, {sum(map(len, wanted.values()))} functions")


def build(library: Path, symbols: list[tuple[str, str]]) -> None:
    """Compile one library that has these functions, under the version that is asked for."""
    source = "\n".join(
        BODIES.get(name, f"long {name}(void) {{ return {NO_DEVICE}; }}") for name, _ in symbols
    )
    versions = "".join(f"{version} {{ *; }};\n" for version in {version for _, version in symbols if version})
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "versions"
        script.write_text(versions)
        given = [f"-Wl,--version-script={script}"] if versions else []
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-xc", "-", "-o", str(library)]
        subprocess.run([*command, f"-Wl,-soname={library.name}", *given], input=source, text=True, check=True)


def read(*command: object) -> str:
    """Return what a program prints."""
    return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
