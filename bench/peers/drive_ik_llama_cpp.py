"""ik_llama.cpp through `ik-llama-cpp-python`, driven by `bench/peers.py`: weights repacked when loaded."""

from __future__ import annotations

import protocol
from ik_llama_cpp import _ctypes_api
from llama_family import LlamaAdapter

if __name__ == "__main__":
    protocol.serve(
        LlamaAdapter(
            _ctypes_api,
            model_fields={"repack_tensors": True, "use_mmap": False},
            context_fields={"flash_attn": True},
            forget=_ctypes_api.llama_kv_cache_clear,
        )
    )
