// The Python face of the CPU kernels: threads, packing, checksums, memory, and plans. Addresses are plain integers; who
// holds the memory behind them (Python) must outlive what uses them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "kernels/checksum.h"
#include "kernels/matmul.h"
#include "kernels/matmul_bindings.h"
#include "kernels/memory.h"
#include "kernels/plan.h"
#include "kernels/sample_bindings.h"
#include "kernels/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ridgeline {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WritableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IndexTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Array = nb::ndarray<nb::numpy, float>;

PackedMatrix matrix_at(int32_t format, int64_t rows, int64_t width, uint64_t address) {
    return {static_cast<FormatId>(format), rows, width, reinterpret_cast<const uint8_t*>(address)};
}

void pack(ThreadPool& pool, int32_t format, int64_t rows, int64_t width, Bytes source, WritableBytes packed) {
    const auto id = static_cast<FormatId>(format);
    if (packed.size() < packed_bytes(id, rows, width)) throw std::invalid_argument("too little room to pack into");
    const nb::gil_scoped_release released;
    const int64_t count = (rows + TILE_ROWS - 1) / TILE_ROWS;
    pool.run([&](int thread) {
        const Range range = static_range(count, 1, thread, pool.num_threads());
        pack_tiles(id, rows, width, source.data(), packed.data(), range.begin, range.end);
    });
}

Array new_array(size_t rows, size_t width) {
    float* data = new float[std::max<size_t>(1, rows * width)];
    const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return Array(data, {rows, width}, owner);
}

Array unpacked_rows(const PackedMatrix& matrix, Indices rows) {
    for (size_t i = 0; i < rows.size(); ++i)
        if (rows(i) < 0 || rows(i) >= matrix.rows) throw std::invalid_argument("no such row");
    Array out = new_array(rows.size(), static_cast<size_t>(matrix.width));
    unpack_rows(matrix, rows.data(), static_cast<int64_t>(rows.size()), out.data(), matrix.width);
    return out;
}

// x @ matrix.T, for tests and measurements of the products alone.
Array product(ThreadPool& pool, const PackedMatrix& matrix, FloatRows x) {
    const auto num_rows = static_cast<int64_t>(x.shape(0));
    if (static_cast<int64_t>(x.shape(1)) != matrix.width) throw std::invalid_argument("x is not as wide as the matrix");
    Array out = new_array(x.shape(0), static_cast<size_t>(matrix.rows));
    const ActivationKind kind = activation_kind(matrix.format);
    const Memory prepared(activation_row_bytes(kind, matrix.width) * x.shape(0));
    float* y = out.data();
    const nb::gil_scoped_release released;
    pool.run([&](int thread) {
        const Range rows = static_range(num_rows, 1, thread, pool.num_threads());
        prepare_activations(kind, x.data(), matrix.width, num_rows, matrix.width, prepared.data(), rows.begin,
                            rows.end);
        pool.barrier(thread);
        const Range tiles = static_range(num_tiles(matrix), 2, thread, pool.num_threads());
        matmul(matrix, prepared.data(), num_rows, y, matrix.rows, {}, tiles.begin, tiles.end);
    });
    return out;
}

// Operations (or bytes read) a second over all threads, each for about `seconds`.
double measured_rate(ThreadPool& pool, const std::string& what, double seconds) {
    std::vector<double> rates(static_cast<size_t>(pool.num_threads()));
    // Larger than any last-level cache that the threads share.
    const Memory buffer(what == "read" ? size_t{512} << 20 : 0);
    const nb::gil_scoped_release released;
    if (what == "read") {
        // Memory that was never written is one page of zeros, read from the cache.
        pool.run([&](int thread) {
            const Range range = static_range(static_cast<int64_t>(buffer.size()), 4096, thread, pool.num_threads());
            std::fill(buffer.data() + range.begin, buffer.data() + range.end, uint8_t{1});
        });
    }
    pool.run([&](int thread) {
        const auto start = std::chrono::steady_clock::now();
        double result = 0.0;
        if (what == "read")
            result = measure_read_bytes(buffer.data(), buffer.size(), seconds, thread, pool.num_threads());
        else if (what == "int8")
            result = measure_int8_operations(seconds);
        else if (what == "bf16")
            result = measure_bf16_operations(seconds);
        else
            result = measure_fp32_operations(seconds);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        rates[static_cast<size_t>(thread)] = result / taken.count();
    });
    return std::accumulate(rates.begin(), rates.end(), 0.0);
}

// A step's arrays, looked at once: they may be written to and the step run again.
struct BoundStep {
    StepView view;
    std::vector<Indices> arrays;  // keeps them alive
    IndexTable page_table;

    BoundStep(Indices token_ids, Indices positions, Indices slots, Indices sequences, Indices query_starts,
              Indices context_lengths, IndexTable table, Indices places, Indices logit_rows)
        : arrays{token_ids, positions, slots, sequences, query_starts, context_lengths, places, logit_rows},
          page_table(table) {
        if (positions.size() != token_ids.size() || slots.size() != token_ids.size() ||
            sequences.size() != token_ids.size() || query_starts.size() != context_lengths.size() + 1 ||
            page_table.shape(0) != context_lengths.size() || places.size() != context_lengths.size())
            throw std::invalid_argument("the step breaks a law: its arrays are of different lengths");
        view.num_tokens = static_cast<int64_t>(token_ids.size());
        view.num_sequences = static_cast<int64_t>(context_lengths.size());
        view.num_logit_rows = static_cast<int64_t>(logit_rows.size());
        view.table_stride = static_cast<int64_t>(page_table.shape(1));
        view.token_ids = token_ids.data();
        view.positions = positions.data();
        view.slots = slots.data();
        view.sequences = sequences.data();
        view.query_starts = query_starts.data();
        view.context_lengths = context_lengths.data();
        view.page_table = page_table.data();
        view.places = places.data();
        view.logit_rows = logit_rows.data();
    }
};

void run_plan(Plan& plan, const BoundStep& step) {
    const nb::gil_scoped_release released;
    plan.run(step.view);
}

nb::list run_and_choose(Plan& plan, const BoundStep& step, nb::bytes choices, nb::bytes adjustments) {
    std::vector<int32_t> tokens(static_cast<size_t>(step.view.num_logit_rows));
    if (choices.size() != tokens.size() * sizeof(Choice) || adjustments.size() % sizeof(Adjustment) != 0)
        throw std::invalid_argument("a step takes one record of a choice for each logit row, and whole adjustments");
    ChoiceRequest request;
    request.choices = reinterpret_cast<const Choice*>(choices.c_str());
    request.adjustments = reinterpret_cast<const Adjustment*>(adjustments.c_str());
    request.num_adjustments = static_cast<int64_t>(adjustments.size() / sizeof(Adjustment));
    request.tokens = tokens.data();
    {
        const nb::gil_scoped_release released;
        plan.run(step.view, &request);
    }
    nb::list chosen;
    for (const int32_t token : tokens) chosen.append(token);
    return chosen;
}

void bind_values(nb::module_& m) {
    nb::class_<PackedMatrix>(m, "Matrix")
        .def(
            "__init__",
            [](PackedMatrix* self, int32_t format, int64_t rows, int64_t width, uint64_t address) {
                new (self) PackedMatrix(matrix_at(format, rows, width, address));
            },
            "format"_a, "rows"_a, "width"_a, "address"_a);
    nb::class_<Place>(m, "Place")
        .def(
            "__init__", [](Place* self, int64_t offset, int64_t stride) { new (self) Place{offset, stride}; },
            "offset"_a, "stride"_a);
    nb::class_<PreparedPlace>(m, "PreparedPlace")
        .def(
            "__init__",
            [](PreparedPlace* self, int32_t kind, int64_t offset_bytes, int64_t own_offset_bytes) {
                new (self) PreparedPlace{static_cast<ActivationKind>(kind), offset_bytes, own_offset_bytes};
            },
            "kind"_a, "offset_bytes"_a, "own_offset_bytes"_a);
    nb::class_<Part>(m, "Part").def(
        "__init__",
        [](Part* self, const PackedMatrix& matrix, const PreparedPlace& prepared, const Place& out,
           uint64_t bias_address, bool accumulate) {
            new (self) Part{matrix, prepared, out, reinterpret_cast<const float*>(bias_address), accumulate};
        },
        "matrix"_a, "prepared"_a, "out"_a, "bias_address"_a = 0, "accumulate"_a = false);
    nb::class_<KvLayer>(m, "KvLayer")
        .def(
            "__init__",
            [](KvLayer* self, int32_t format, int64_t num_heads, int64_t head_width, uint64_t pages_address,
               int64_t page_stride, uint64_t open_address, int64_t place_stride) {
                new (self) KvLayer{static_cast<KvFormat>(format),
                                   num_heads,
                                   head_width,
                                   reinterpret_cast<uint8_t*>(pages_address),
                                   page_stride,
                                   reinterpret_cast<uint8_t*>(open_address),
                                   place_stride};
            },
            "format"_a, "num_heads"_a, "head_width"_a, "pages_address"_a, "page_stride"_a, "open_address"_a,
            "place_stride"_a);
}

void bind_plan(nb::module_& m) {
    nb::class_<Record>(m, "Record")
        .def(
            "__init__",
            [](Record* self, int32_t op, int32_t rows) {
                new (self) Record{};
                self->op = static_cast<Op>(op);
                self->rows = static_cast<StepArray>(rows);
            },
            "op"_a, "rows"_a)
        .def_prop_rw(
            "index", [](const Record& r) { return static_cast<int32_t>(r.index); },
            [](Record& r, int32_t index) { r.index = static_cast<StepArray>(index); })
        .def_prop_rw(
            "activation", [](const Record& r) { return static_cast<int32_t>(r.activation); },
            [](Record& r, int32_t kind) { r.activation = static_cast<Activation>(kind); })
        .def_prop_rw(
            "vector_address", [](const Record& r) { return reinterpret_cast<uint64_t>(r.vector); },
            [](Record& r, uint64_t address) { r.vector = reinterpret_cast<const float*>(address); })
        .def_rw("needs_barrier", &Record::needs_barrier)
        .def_rw("may_repeat", &Record::may_repeat)
        .def_rw("x", &Record::x)
        .def_rw("y", &Record::y)
        .def_rw("out", &Record::out)
        .def_rw("width", &Record::width)
        .def_rw("num_heads", &Record::num_heads)
        .def_rw("turned_width", &Record::turned_width)
        .def_rw("factor", &Record::factor)
        .def_rw("softcap", &Record::softcap)
        .def_rw("window", &Record::window)
        .def_rw("table", &Record::table)
        .def_rw("prepared", &Record::prepared)
        .def_rw("prepares_output", &Record::prepares_output)
        .def_rw("parts", &Record::parts)
        .def_rw("layer", &Record::layer)
        .def_rw("is_joined", &Record::is_joined)
        .def_rw("query_chain", &Record::query_chain)
        .def_rw("key_chain", &Record::key_chain)
        .def_rw("value_chain", &Record::value_chain)
        .def_rw("store", &Record::store);
    nb::class_<BoundStep>(m, "BoundStep")
        .def(nb::init<Indices, Indices, Indices, Indices, Indices, Indices, IndexTable, Indices, Indices>());
    nb::class_<Plan>(m, "Plan")
        .def(
            "__init__",
            [](Plan* self, std::shared_ptr<ThreadPool> pool, std::vector<Record> records, int64_t max_tokens,
               int64_t max_sequences, int64_t max_logit_rows, int64_t max_pages_per_sequence, int64_t num_pages,
               int64_t arena_bytes) {
                const PlanLimits limits{max_tokens, max_sequences, max_logit_rows, max_pages_per_sequence, num_pages};
                new (self) Plan(std::move(pool), std::move(records), limits, arena_bytes);
            },
            "pool"_a, "records"_a, "max_tokens"_a, "max_sequences"_a, "max_logit_rows"_a, "max_pages_per_sequence"_a,
            "num_pages"_a, "arena_bytes"_a)
        .def("run", &run_plan, "step"_a)
        .def("run_and_choose", &run_and_choose, "step"_a, "choices"_a, "adjustments"_a)
        .def("choose_from", &Plan::choose_from, "logits"_a, "width"_a)
        .def(
            "value",
            [](nb::handle self, const Place& place, size_t rows, size_t width) {
                const Plan& plan = nb::cast<const Plan&>(self);
                const int64_t strides[2] = {place.stride, 1};
                const size_t shape[2] = {rows, width};
                return Array(const_cast<float*>(plan.value(place)), 2, shape, self, strides);
            },
            "place"_a, "rows"_a, "width"_a)
        .def("seconds", &Plan::seconds)
        .def("memory_bytes", &Plan::memory_bytes)
        .def("set_timing", &Plan::set_timing, "is_on"_a)
        .def("num_threads", &Plan::num_threads)
        .def("busy_seconds", &Plan::busy_seconds, "thread"_a)
        .def("wait_seconds", &Plan::wait_seconds, "thread"_a);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Kernels of the CPU chip; see the headers in chips/cpu/kernels.";
    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(
            "__init__", [](ThreadPool* self, int num_threads) { new (self) ThreadPool(num_threads); }, "num_threads"_a)
        .def_prop_ro("num_threads", &ThreadPool::num_threads);
    nb::class_<Memory>(m, "Memory")
        .def(
            "__init__", [](Memory* self, size_t bytes) { new (self) Memory(bytes); }, "bytes"_a)
        .def_prop_ro("address", [](const Memory& memory) { return reinterpret_cast<uint64_t>(memory.data()); })
        .def_prop_ro("size", &Memory::size)
        .def("array", [](nb::handle self) {
            const Memory& memory = nb::cast<const Memory&>(self);
            const size_t shape[1] = {memory.size()};
            return nb::ndarray<nb::numpy, uint8_t>(memory.data(), 1, shape, self);
        });
    bind_values(m);
    bind_plan(m);
    m.attr("PACKED_LAYOUT_VERSION") = PACKED_LAYOUT_VERSION;
    m.attr("REPEATED_ROWS") = Plan::REPEATED_ROWS;
    m.def("instruction_set", [] { return std::string(instruction_set()); });
    m.def("set_instruction_set", [](const std::string& name) { return set_instruction_set(name.c_str()); }, "name"_a);
    m.def("instruction_sets", [] {
        const std::vector<const char*> names = instruction_sets();
        return std::vector<std::string>(names.begin(), names.end());
    });
    m.def(
        "has_fast_products", [](int32_t format) { return has_fast_products(static_cast<FormatId>(format)); },
        "format"_a);
    m.def(
        "activation_kind",
        [](int32_t format) { return static_cast<int32_t>(activation_kind(static_cast<FormatId>(format))); },
        "format"_a);
    m.def(
        "activation_row_bytes",
        [](int32_t kind, int64_t width) { return activation_row_bytes(static_cast<ActivationKind>(kind), width); },
        "kind"_a, "width"_a);
    m.def(
        "packed_bytes",
        [](int32_t format, int64_t rows, int64_t width) {
            return packed_bytes(static_cast<FormatId>(format), rows, width);
        },
        "format"_a, "rows"_a, "width"_a);
    m.def("pack", &pack, "pool"_a, "format"_a, "rows"_a, "width"_a, "source"_a, "packed"_a);
    m.def("unpacked_rows", &unpacked_rows, "matrix"_a, "rows"_a);
    m.def("product", &product, "pool"_a, "matrix"_a, "x"_a);
    m.def(
        "checksum",
        [](ThreadPool& pool, Bytes data) {
            const nb::gil_scoped_release released;
            return checksum(pool, data.data(), data.size());
        },
        "pool"_a, "data"_a);
    m.def("measured_rate", &measured_rate, "pool"_a, "what"_a, "seconds"_a);
    m.def(
        "block_bytes",
        [](int32_t format, int64_t head_width) { return block_bytes(static_cast<KvFormat>(format), head_width); },
        "format"_a, "head_width"_a);
    nb::module_ products = m.def_submodule("products", "The matrix products by themselves, for their tests.");
    bind_matmul(products);
    nb::module_ sampling = m.def_submodule("sampling", "The choosing of tokens by itself, for its tests.");
    bind_sample(sampling);
    m.def("plain_block_bytes", [](int64_t head_width) { return plain_block_bytes(false, head_width); }, "head_width"_a);
}

}  // namespace ridgeline
