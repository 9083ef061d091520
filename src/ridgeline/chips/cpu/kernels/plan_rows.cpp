// The records of a plan that work row by row.
#include "plan.h"

namespace ridgeline {

// The first heads of a row from x on, each by itself.
void Plan::execute_heads(const Record& record, int64_t row_index, int64_t num_heads, const float* x, float* out) const {
    if (record.op == Op::Rope)
        return elementwise_.rope(x, row(record.y, row_index), num_heads, record.width / record.num_heads,
                                 record.turned_width, out);
    for (int64_t head = 0; head < num_heads; ++head)
        elementwise_.rms_norm(x + head * record.width, record.vector, record.factor, record.width,
                              out + head * record.width);
}

void Plan::execute_rows(const Record& record, int64_t begin, int64_t end, int thread) {
    switch (record.op) {
        case Op::Prepare:
            return prepare(record, begin, end, thread, false);
        case Op::StoreKv:
            return store_tokens(attention_, record.layer, step_, rows_of(record.x), rows_of(record.y), begin, end, 0,
                                record.layer.num_heads);
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
            case Op::Rope:
                execute_heads(record, i, record.num_heads, x, out);
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
