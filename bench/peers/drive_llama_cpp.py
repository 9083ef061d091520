"""llama.cpp through `llama-cpp-python`, driven by `bench/peers.py`. LLAMA_CPP_LIB_PATH names another build of it."""

from __future__ import annotations

import llama_cpp
import protocol
from llama_family import LlamaAdapter

FLASH_ATTENTION_ON = 1


def _forget(context: llama_cpp.llama_context_p) -> None:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)


if __name__ == "__main__":
    protocol.serve(
        LlamaAdapter(llama_cpp, model_fields={}, context_fields={"flash_attn_type": FLASH_ATTENTION_ON}, forget=_forget)
    )
