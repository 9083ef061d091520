// The records of a plan that work row by row.
#include <cmath>

#include "plan.h"

namespace ridgeline {

namespace {

// Normalises each head of a row.
void norm_row(const ElementwiseKernels& kernels, const Record& record, const float* x, float* out) {
    for (int64_t head = 0; head < record.num_heads; ++head)
        kernels.rms_norm(x + head * record.width, record.vector, record.factor, record.width,
                         out + head * record.width);
}

}  // namespace

void Plan::execute_rows(const Record& record, int64_t begin, int64_t end, int thread) {
    switch (record.op) {
        case Op::Prepare:
            return prepare(record, begin, end, thread, false);
        case Op::StoreKv:
            return store_tokens(attention_, record.layer, step_, row(record.x, 0), record.x.stride, row(record.y, 0),
                                record.y.stride, begin, end);
        case Op::Embed:
            unpack_rows(record.table, indices(record.index) + begin, end - begin, row(record.out, begin),
                        record.out.stride);
            return;
        default:
            break;
    }
    const ElementwiseKernels& kernels = elementwise_;
    for (int64_t i = begin; i < end; ++i) {
        float* out = row(record.out, i);
        const float *x = row(record.x, i), *y = row(record.y, i);
        switch (record.op) {
            case Op::Add:
                kernels.add(x, y, record.width, out);
                break;
            case Op::Multiply:
                kernels.multiply(x, y, record.width, out);
                break;
            case Op::Scale:
                kernels.scale(x, record.factor, record.width, out);
                break;
            case Op::RmsNorm:
                norm_row(kernels, record, x, out);
                break;
            case Op::Activate:
                kernels.activate(x, record.activation, record.width, out);
                break;
            case Op::Softcap:
                kernels.softcap(x, record.factor, record.width, out);
                break;
            case Op::Angles:
                angles_of(indices(record.index)[i], record.vector, record.width / 2, record.factor, out);
                break;
            case Op::Rope:
                kernels.rope(x, y, record.num_heads, record.width / record.num_heads, record.turned_width, out);
                break;
            case Op::TakeRows:
                x = row(record.x, indices(record.index)[i]);
                for (int64_t c = 0; c < record.width; ++c) out[c] = x[c];
                break;
            default:
                break;
        }
    }
}

void Plan::prepare(const Record& record, int64_t begin, int64_t end, int thread, bool is_own) {
    float* normed = reinterpret_cast<float*>(scratch(thread));
    for (int64_t i = begin; i < end; ++i) {
        const float* x = row(record.x, i);
        if (record.vector != nullptr) {
            elementwise_.rms_norm(x, record.vector, record.factor, record.width, normed);
            x = normed;
        }
        for (const PreparedPlace& place : record.prepared) {
            uint8_t* out = is_own ? scratch(thread) + own_prepared_offset_ + place.own_offset_bytes
                                  : arena_.data() + place.offset_bytes;
            prepare_activations(place.kind, x, 0, num_rows(record.rows), record.width, out, i, i + 1);
        }
    }
}

}  // namespace ridgeline
