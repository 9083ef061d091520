// One step's indices as the kernels see them; ops/step.py says what each is and which laws hold.
#pragma once

#include <cstdint>

namespace ridgeline {

constexpr int64_t PAGE_SLOTS = 64;

struct StepView {
    int64_t num_tokens = 0, num_sequences = 0, num_logit_rows = 0;
    int64_t table_stride = 0;  // pages of the longest sequence
    const int32_t* token_ids = nullptr;
    const int32_t* positions = nullptr;
    const int32_t* slots = nullptr;
    const int32_t* sequences = nullptr;
    const int32_t* query_starts = nullptr;
    const int32_t* context_lengths = nullptr;
    const int32_t* page_table = nullptr;
    const int32_t* places = nullptr;
    const int32_t* logit_rows = nullptr;

    int64_t page(int64_t sequence, int64_t index) const { return page_table[sequence * table_stride + index]; }
};

}  // namespace ridgeline
