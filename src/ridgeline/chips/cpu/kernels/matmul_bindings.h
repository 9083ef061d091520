// The products as Python functions: the module's own file calls this.
#pragma once

#include <nanobind/nanobind.h>

namespace ridgeline {

void bind_matmul(nanobind::module_& module);

}  // namespace ridgeline
