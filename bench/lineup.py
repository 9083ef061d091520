"""Who takes part in `bench/peers.py`, and in what: a row is an engine with its weights, a case is what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ADAPTERS = Path(__file__).parent / "peers"

FROM_FILE = "file"
"""The row reads the GGUF file itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An engine with the weights that it runs."""

    name: str
    environment: str
    """The folder of its interpreter, below the folder of all peers; Ridgeline's own is told by the command line."""
    adapter: str
    """The program in bench/peers that drives it."""
    weights: str = FROM_FILE
    """FROM_FILE, or the name of a folder below `models/MODEL/` of the folder of all peers."""
    warms_itself: bool = False
    """Its adapter runs something in each new shape before the clock starts."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its environment; {folder} and {environment} stand for those folders."""
    server: tuple[str, ...] = ()
    """Its HTTP server, in the same terms, and {model}, {port}, {threads}."""


ROWS = (
    Row(
        name="ridgeline",
        environment="ridgeline",
        adapter="drive_ridgeline.py",
        server=("{python}", "-m", "ridgeline", "serve", "{model}", "--port", "{port}", "--threads", "{threads}"),
    ),
    Row(
        name="llama.cpp",
        environment="llama.cpp",
        adapter="drive_llama_cpp.py",
        warms_itself=True,
        server=("{environment}/bin/llama-server", "-m", "{model}", "--port", "{port}", "-t", "{threads}")
        + ("-np", "8", "-c", "4096", "-fa", "on"),
    ),
    Row(name="ik_llama.cpp", environment="ik_llama.cpp", adapter="drive_ik_llama_cpp.py", warms_itself=True),
    Row(name="openvino int4", environment="openvino", adapter="drive_openvino.py", weights="openvino-int4"),
    Row(name="openvino int8", environment="openvino", adapter="drive_openvino.py", weights="openvino-int8"),
    Row(name="onnxruntime int4", environment="onnxruntime", adapter="drive_onnxruntime.py", weights="onnxruntime-int4"),
    Row(
        name="vllm w8a8",
        environment="vllm",
        adapter="drive_vllm.py",
        weights="w8a8",
        variables={
            "LD_PRELOAD": "libtcmalloc_minimal.so.4:{environment}/lib/libiomp5.so",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HF_HUB_OFFLINE": "1",
        },
    ),
    Row(
        name="ridgeline avx2",
        environment="ridgeline",
        adapter="drive_ridgeline.py",
        variables={"RIDGELINE_INSTRUCTION_SET": "avx2"},
    ),
    Row(
        name="llama.cpp avx2",
        environment="llama.cpp",
        adapter="drive_llama_cpp.py",
        warms_itself=True,
        variables={"LLAMA_CPP_LIB_PATH": "{folder}/llama.cpp-avx2/bin"},
    ),
    # The wheel of the index, which is compiled for AVX2.
    Row(name="ik_llama.cpp avx2", environment="ik_llama.cpp-avx2", adapter="drive_ik_llama_cpp.py", warms_itself=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`num_prompts` prompts at once, and how many tokens are written after each."""

    name: str
    num_prompts: int
    prompt_tokens: int
    new_tokens: int
    shared_tokens: int = 0
    """How many tokens all prompts begin with."""


CASES = (
    Case(name="prefill 512", num_prompts=1, prompt_tokens=512, new_tokens=1),
    Case(name="decode @128", num_prompts=1, prompt_tokens=128, new_tokens=129),
    # Reads a prompt of 2,048 first, so it is the case of that prefill, too.
    Case(name="decode @2048", num_prompts=1, prompt_tokens=2048, new_tokens=65),
    Case(name="batch 8", num_prompts=8, prompt_tokens=256, new_tokens=128),
    Case(name="batch 32", num_prompts=32, prompt_tokens=256, new_tokens=128),
    *(
        Case(name=f"rows {rows}", num_prompts=rows, prompt_tokens=128, new_tokens=17)
        for rows in (16, 12, 8, 6, 5, 4, 3, 2, 1)
    ),
    Case(name="shared prefix", num_prompts=16, prompt_tokens=1056, new_tokens=32, shared_tokens=1024),
    # Over HTTP, for the rows that have a server.
    Case(name="server 8", num_prompts=8, prompt_tokens=256, new_tokens=128),
)
CONTEXT_TOKENS = 2304
NUM_SEQUENCES = 32
