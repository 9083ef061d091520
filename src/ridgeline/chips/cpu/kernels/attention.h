// Keys and values in pages, and attention over them.
//
// A page holds 64 slots (tokens) of one layer; for each kv head it is one block of memory:
//   bf16: keys [C/2][64][2], then values [32][S][2]: pairs of channels (of slots) side by side, as vdpbf16ps wants
//         them, so that neither product needs a horizontal sum. S is the head width C rounded up to 16.
//   f32:  keys [C][64], then values [64][S].
//   int8: codes of keys [C/4][64][4], of values [16][S][4], as integer products want them (C rounded up to 4), then per
//         channel scale and low of the keys, per slot scale of the values.
// With int8 the newest two pages of each running sequence are kept in bf16 as well (`open`, by place and parity of the
// page), because a query reads its own page unquantised; pages that begin and end within a step, except the last two,
// are `staged` for the length of the step.
//
// The law: the bits of a query's result depend on its own sequence's keys and values and on its position alone. Pages
// are walked in order; 8 of them are a span, which starts from nothing; spans are folded in order of position. So spans
// may be shared out among threads, queries may be taken in blocks of any size, and the bits stay.
#pragma once

#include <cstddef>
#include <cstdint>

#include "step_view.h"

namespace ridgeline {

constexpr int64_t SPAN_PAGES = 8;
constexpr int64_t MAX_HEAD_WIDTH = 576;  // the latent cache of multi-head latent attention is one such head

enum class KvFormat : int32_t { F32 = 0, Bf16 = 1, Int8 = 2 };

// Values of a slot, padded for the vectors of the kernels.
constexpr int64_t value_stride(int64_t head_width) { return (head_width + 15) / 16 * 16; }

// Channels of keys' codes, padded to words.
constexpr int64_t key_code_width(int64_t head_width) { return (head_width + 3) / 4 * 4; }

// Bytes of one page and kv head in a plain format, and in any format.
constexpr size_t plain_block_bytes(bool is_f32, int64_t head_width) {
    return static_cast<size_t>((head_width + value_stride(head_width)) * PAGE_SLOTS * (is_f32 ? 4 : 2));
}
constexpr size_t block_bytes(KvFormat format, int64_t head_width) {
    if (format != KvFormat::Int8) return plain_block_bytes(format == KvFormat::F32, head_width);
    const int64_t codes = (key_code_width(head_width) + value_stride(head_width)) * PAGE_SLOTS;
    const int64_t scales = (2 * head_width + PAGE_SLOTS) * 4;
    return static_cast<size_t>((codes + scales + 63) / 64 * 64);
}

// Where one layer's keys and values lie.
struct KvLayer {
    KvFormat format = KvFormat::Bf16;
    int64_t num_heads = 0, head_width = 0;
    uint8_t* pages = nullptr;  // [page][kv head] blocks
    int64_t page_stride = 0;   // bytes from a page to the next: a page's layers lie side by side
    uint8_t* open = nullptr;   // int8: [place][2][kv head] plain blocks
    int64_t place_stride = 0;  // bytes from a place to the next, likewise

    uint8_t* block(int64_t page, int64_t kv_head) const {
        return pages + page * page_stride + kv_head * static_cast<int64_t>(block_bytes(format, head_width));
    }
    uint8_t* open_block(int64_t place, int64_t parity, int64_t kv_head) const {
        const auto bytes = static_cast<int64_t>(plain_block_bytes(false, head_width));
        return open + place * place_stride + (parity * num_heads + kv_head) * bytes;
    }
};

// Where the plain blocks of this step's own pages lie, with int8; see `staged_begin`.
struct Staging {
    uint8_t* blocks = nullptr;              // [staged page][kv head] plain blocks of the widest layer
    const int32_t* first_staged = nullptr;  // per sequence: number of its first staged page
};

// A run of consecutive tokens of one sequence that lie in one aligned block of positions; never across pages.
struct QueryBlock {
    int32_t sequence, token_begin, token_end;
};
constexpr int64_t MAX_BLOCK_TOKENS = 32;

struct AttendRequest {
    const StepView* step = nullptr;
    KvLayer layer;
    Staging staging;
    const float* q = nullptr;
    float* y = nullptr;
    int64_t q_stride = 0, y_stride = 0;  // floats from one token to the next
    int64_t num_query_heads = 0;
    float scale = 1.0f;
    int64_t window = 0;    // 0: all positions
    float softcap = 0.0f;  // 0: none
};

struct SpanRange {
    int64_t begin, end;
};
// The spans that a block of queries reads.
SpanRange spans_of(const AttendRequest& request, const QueryBlock& block);

// Floats that one query head of a token takes in a partial result: max, sum, weighted values.
constexpr int64_t partial_floats(int64_t head_width) { return value_stride(head_width) + 16; }

struct AttentionKernels {
    // Stores one token's key and value of one head. Where the slot is even and the next slot is not stored in this
    // step, `clear_next` zeroes the next value, which shares a word with this one and may be read with weight zero.
    void (*store)(bool is_f32, int64_t head_width, const float* key, const float* value, int64_t slot, bool clear_next,
                  uint8_t* block);
    // Quantises a full plain bf16 block.
    void (*quantise)(int64_t head_width, const uint8_t* plain, uint8_t* block);
    // Attends with a block of queries, all heads of the group of `kv_head`, over these spans. With `partial` null the
    // spans are all that the block has, and y is written; else there is one span, whose partial result is written.
    void (*attend)(const AttendRequest& request, const QueryBlock& block, int64_t kv_head, SpanRange spans,
                   float* partial, uint8_t* scratch);
    // Folds the partial results of spans, which lie `partial_stride` floats apart, and writes y.
    void (*merge)(const AttendRequest& request, const QueryBlock& block, int64_t kv_head, int64_t num_spans,
                  const float* partials, int64_t partial_stride);
};

const AttentionKernels& attention_kernels();

// Bytes of it for one page as a kernel works with it: float keys and values, or queries in whole numbers.
constexpr int64_t page_scratch_bytes(int64_t head_width) {
    const int64_t floats = 2 * 4 * value_stride(head_width) * PAGE_SLOTS, queries = 48 * value_stride(MAX_HEAD_WIDTH);
    return floats > queries ? floats : queries;
}
// Bytes of scratch memory that `attend` needs for each thread.
size_t attend_scratch_bytes(int64_t group_heads, int64_t head_width);

// The plain block that holds a page of a sequence that is touched in this step, or, if int8 and closed, null.
uint8_t* plain_block(const KvLayer& layer, const Staging& staging, const StepView& step, int64_t sequence,
                     int64_t page_index, int64_t kv_head);

// A row of floats for each token of a step.
struct FloatRows {
    const float* first;
    int64_t stride;
};

// Stores some heads of the tokens [token_begin, token_end) of a step in a plain format.
void store_tokens(const AttentionKernels& kernels, const KvLayer& layer, const StepView& step, const FloatRows& k,
                  const FloatRows& v, int64_t token_begin, int64_t token_end, int64_t head_begin, int64_t head_end);
// Stores all tokens of one sequence for one head where the format is int8, and quantises the pages that are full.
void store_sequence(const AttentionKernels& kernels, const KvLayer& layer, const Staging& staging, const StepView& step,
                    const FloatRows& k, const FloatRows& v, int64_t sequence, int64_t kv_head);

// How many pages of a sequence are staged in a step: those that it touches, but for the last two.
int64_t num_staged_pages(const StepView& step, int64_t sequence);

namespace portable {
extern const AttentionKernels ATTENTION;
}
#if defined(__x86_64__)
namespace avx2 {
extern const AttentionKernels ATTENTION;
}
namespace avx512 {
extern const AttentionKernels ATTENTION;
}
namespace avx512bf16 {
extern const AttentionKernels ATTENTION;
}
#endif

}  // namespace ridgeline
