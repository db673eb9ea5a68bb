"""Stand-ins for what vLLM imports and does not need in order to read its arguments."""

import abc
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Neither installed here nor wanted: torch alone has 800 MB. What is missing from the list is a
# ModuleNotFoundError; what is optional to vLLM (flashinfer, triton, ray) has to stay missing.
STOOD_IN = {
    "PIL", "aiohttp", "blake3", "cachetools", "cbor2", "cloudpickle", "cpuinfo", "diskcache", "fastapi",
    "gguf", "huggingface_hub", "jinja2", "llguidance", "lmformatenforcer", "numpy", "openai",
    "openai_harmony", "partial_json_parser", "prometheus_client", "psutil", "pybase64", "requests",
    "safetensors", "starlette", "tokenizers", "torch", "tqdm", "transformers", "urllib3", "uvloop",
    "xgrammar", "zmq",
}  # fmt: skip
COMPILED = ("vllm._C", "vllm._moe_C", "vllm._rocm_C")
NEWEST = "99.0"  # of every stood-in distribution, as vLLM compares versions


def _schema(cls: type, _source: object, _handler: object) -> Any:
    from pydantic_core import core_schema  # noqa: PLC0415  # of the clean environment

    return core_schema.is_instance_schema(cls)


class _AnyName(abc.ABCMeta):
    """A class that has whatever attribute is asked for, and takes part in any expression."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        made = stand_in(name)
        setattr(cls, name, made)
        return made

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type):
            return args[0]  # a decorator
        return cls if cls.__dict__.get("stood_in") else super().__call__(*args, **kwargs)

    def __or__(cls, other: Any) -> Any:
        return typing.Union[cls, other]  # noqa: UP007

    def __ror__(cls, other: Any) -> Any:
        return typing.Union[other, cls]  # noqa: UP007

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __len__(cls) -> int:
        return 0

    def __bool__(cls) -> bool:
        return True

    def __contains__(cls, item: object) -> bool:
        return False

    def __index__(cls) -> int:
        return 0

    def __float__(cls) -> float:
        return 0.0

    def __exit__(cls, *error: object) -> None:
        return None

    def _same(cls, *_: object) -> Any:
        return cls

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _same
    __floordiv__ = __mod__ = __pow__ = __rpow__ = __and__ = __rand__ = __lshift__ = __neg__ = _same
    __getitem__ = __enter__ = _same

    def _less(cls, _: object) -> bool:
        return False

    def _more(cls, _: object) -> bool:
        return True

    __lt__ = __le__ = _less
    __gt__ = __ge__ = _more


def stand_in(name: str) -> type:
    """Return a class of that name which accepts everything done to it."""
    schema: dict[str, Any] = {"__get_pydantic_core_schema__": classmethod(_schema)}
    return _AnyName(name, (), {"stood_in": True, "__module__": "stood_in", **schema})


class _Module(types.ModuleType):
    __path__: list[str] = []
    __version__ = NEWEST

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        made = stand_in(name)
        setattr(self, name, made)
        return made


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, name: str, version: str) -> None:
        self._text = f"Name: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, version: str) -> None:
        self.version = version

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in STOOD_IN and not fullname.startswith(COMPILED):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass

    def find_distributions(self, context: Any = None) -> Iterator[importlib.metadata.Distribution]:
        name = context.name if context else None
        if name == "vllm":
            yield _Distribution(name, self.version)
        elif name in STOOD_IN:
            yield _Distribution(name, NEWEST)


def _operator_schema(function: Any, **_: object) -> str:
    """Return as much of torch's own description of an operator as vllm/ir/op.py counts."""
    returned = typing.get_args(function.__annotations__.get("return")) or ("one",)
    return f"() -> ({', '.join('Tensor' for _ in returned)})"


def import_vllm(folder: Path, version: str) -> None:
    """Make `import vllm` find the release in `folder`, on a node with more simulated H100 than anyone has."""
    sys.path.insert(0, str(folder))
    sys.meta_path.append(_Finder(version))
    vars(importlib.import_module("torch.library"))["infer_schema"] = _operator_schema

    import vllm.platforms  # noqa: PLC0415
    from vllm.platforms.cuda import CudaPlatformBase  # noqa: PLC0415
    from vllm.platforms.interface import DeviceCapability  # noqa: PLC0415

    class H100(CudaPlatformBase):  # type: ignore[misc]
        """The answers of a GPU to what vLLM asks while it reads arguments."""

        get_device_capability = classmethod(lambda *_, **__: DeviceCapability(9, 0))
        get_device_name = classmethod(lambda *_, **__: "NVIDIA H100 80GB HBM3")
        get_device_total_memory = classmethod(lambda *_, **__: 80 * 2**30)
        device_count = classmethod(lambda *_, **__: 1024)
        is_fully_connected = classmethod(lambda *_, **__: True)

    vllm.platforms._current_platform = H100()
