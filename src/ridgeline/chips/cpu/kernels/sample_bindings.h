// The choosing of tokens by itself, for its tests.
#pragma once

#include <nanobind/nanobind.h>

namespace ridgeline {

void bind_sample(nanobind::module_& m);

}  // namespace ridgeline
