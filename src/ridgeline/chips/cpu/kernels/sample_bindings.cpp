#include "sample_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>

#include <stdexcept>

#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ridgeline {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

class RowChooser {
  public:
    RowChooser(std::shared_ptr<ThreadPool> pool, int64_t max_rows, int64_t width)
        : pool_(pool), chooser_(pool, max_rows, width), max_rows_(max_rows), width_(width) {}

    void choose(Rows logits, Bytes choices, Bytes adjustments, Indices positions, Tokens tokens) {
        ChoiceRequest request;
        request.logits = logits.data();
        request.stride = static_cast<int64_t>(logits.shape(1));
        request.num_rows = static_cast<int64_t>(logits.shape(0));
        request.choices = reinterpret_cast<const Choice*>(choices.data());
        request.adjustments = reinterpret_cast<const Adjustment*>(adjustments.data());
        request.num_adjustments = static_cast<int64_t>(adjustments.size() / sizeof(Adjustment));
        request.positions = positions.data();
        request.tokens = tokens.data();
        const size_t rows = logits.shape(0);
        if (request.num_rows > max_rows_ || request.stride != width_ || positions.size() != rows ||
            tokens.size() != rows || choices.size() != rows * sizeof(Choice))
            throw std::invalid_argument("rows, choices, positions and tokens do not fit together");
        const nb::gil_scoped_release released;
        chooser_.begin(request);
        pool_->run([&](int thread) { chooser_.work(thread); });
    }

  private:
    std::shared_ptr<ThreadPool> pool_;
    Chooser chooser_;
    int64_t max_rows_, width_;
};

}  // namespace

void bind_sample(nb::module_& m) {
    nb::class_<RowChooser>(m, "RowChooser")
        .def(
            "__init__",
            [](RowChooser* self, std::shared_ptr<ThreadPool> pool, int64_t max_rows, int64_t width) {
                new (self) RowChooser(std::move(pool), max_rows, width);
            },
            "pool"_a, "max_rows"_a, "width"_a)
        .def("choose", &RowChooser::choose, "logits"_a, "choices"_a, "adjustments"_a, "positions"_a, "tokens"_a);
}

}  // namespace ridgeline
