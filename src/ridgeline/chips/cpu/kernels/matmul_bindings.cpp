// The products as Python functions over numpy arrays, for tests and benchmarks. The steps of a model do not pass here.
#include "matmul_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "matmul.h"
#include "threads.h"

namespace nb = nanobind;

namespace ridgeline {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRow = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using OutFloats = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using InOutFloats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

uint8_t* allocate(size_t bytes) {
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<uint8_t*>(memory);
}

nb::capsule owner(void* memory) {
    return nb::capsule(memory, [](void* pointer) noexcept { std::free(pointer); });
}

OutBytes pack(int format, int64_t rows, int64_t width, Bytes source) {
    const auto id = static_cast<FormatId>(format);
    const size_t bytes = packed_bytes(id, rows, width);
    uint8_t* packed = allocate(bytes);
    OutBytes result(packed, {bytes}, owner(packed));
    const nb::gil_scoped_release release;
    pack_tiles(id, rows, width, source.data(), packed, 0, (rows + TILE_ROWS - 1) / TILE_ROWS);
    return result;
}

OutFloats unpack(int format, int64_t rows, int64_t width, Bytes packed, Ids row_ids) {
    const PackedMatrix matrix{static_cast<FormatId>(format), rows, width, packed.data()};
    const size_t count = row_ids.shape(0);
    auto* out = reinterpret_cast<float*>(allocate(count * static_cast<size_t>(width) * sizeof(float)));
    unpack_rows(matrix, row_ids.data(), static_cast<int64_t>(count), out, width);
    return OutFloats(out, {count, static_cast<size_t>(width)}, owner(out));
}

OutBytes prepare(int kind, Floats x) {
    const auto activation = static_cast<ActivationKind>(kind);
    const auto rows = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
    const size_t bytes = activation_row_bytes(activation, width) * x.shape(0);
    uint8_t* prepared = allocate(bytes);
    std::memset(prepared, 0, bytes);
    prepare_activations(activation, x.data(), width, rows, width, prepared, 0, rows);
    return OutBytes(prepared, {bytes}, owner(prepared));
}

// y += or = for tiles [tile_begin, tile_end), on this thread.
void multiply(int format, int64_t rows, int64_t width, Bytes packed, Bytes prepared, InOutFloats y,
              std::optional<FloatRow> bias, bool accumulate, int64_t tile_begin, int64_t tile_end) {
    const PackedMatrix matrix{static_cast<FormatId>(format), rows, width, packed.data()};
    Epilogue epilogue;
    if (bias) epilogue.bias = bias->data();
    epilogue.accumulate = accumulate;
    const nb::gil_scoped_release release;
    matmul(matrix, prepared.data(), static_cast<int64_t>(y.shape(0)), y.data(), static_cast<int64_t>(y.shape(1)),
           epilogue, tile_begin, tile_end);
}

// Every thread of a fresh pool passes `num_barriers` barriers in each of `num_runs` runs and counts, after each, what
// the others wrote before it; returns how often a count was wrong.
int64_t check_threads(int num_threads, int num_runs, int num_barriers) {
    const nb::gil_scoped_release release;
    ThreadPool pool(num_threads);
    std::vector<int64_t> written(static_cast<size_t>(num_threads) * 8);
    std::atomic<int64_t> errors{0};
    for (int run = 0; run < num_runs; ++run) {
        pool.run([&](int index) {
            for (int i = 0; i < num_barriers; ++i) {
                const int64_t value = static_cast<int64_t>(run) * num_barriers + i;
                written[static_cast<size_t>(index) * 8] = value;
                pool.barrier(index);
                for (int other = 0; other < num_threads; ++other) {
                    if (written[static_cast<size_t>(other) * 8] != value) errors.fetch_add(1);
                }
                pool.barrier(index);
            }
        });
    }
    return errors.load();
}

}  // namespace

void bind_matmul(nanobind::module_& module) {
    module.def("pack", &pack, nb::arg("format"), nb::arg("rows"), nb::arg("width"), nb::arg("source"),
               "The packed form of a matrix whose file bytes are `source`; `format` is the number in GGUF files.");
    module.def("unpack_rows", &unpack, nb::arg("format"), nb::arg("rows"), nb::arg("width"), nb::arg("packed"),
               nb::arg("row_ids"), "Rows of a packed matrix as floats.");
    module.def("activation_kind",
               [](int format) { return static_cast<int>(activation_kind(static_cast<FormatId>(format))); });
    module.def("activation_row_bytes",
               [](int kind, int64_t width) { return activation_row_bytes(static_cast<ActivationKind>(kind), width); });
    module.def("prepare", &prepare, nb::arg("kind"), nb::arg("x"), "Prepared rows of activations.");
    module.def("matmul", &multiply, nb::arg("format"), nb::arg("rows"), nb::arg("width"), nb::arg("packed"),
               nb::arg("prepared"), nb::arg("y"), nb::arg("bias") = nb::none(), nb::arg("accumulate") = false,
               nb::arg("tile_begin"), nb::arg("tile_end"), "Product of prepared rows with some tiles, into `y`.");
    module.def("instruction_set", &instruction_set);
    module.def("set_instruction_set", [](const std::string& name) { return set_instruction_set(name.c_str()); });
    module.def("check_threads", &check_threads, nb::arg("num_threads"), nb::arg("num_runs"), nb::arg("num_barriers"),
               "How many errors a trial of the thread pool's barriers found.");
}

}  // namespace ridgeline
