// Chooses among the elementwise kernels, and what is not worth a vector.
#include "elementwise.h"

#include <cmath>
#include <cstring>

#include "matmul.h"

namespace ridgeline {

const ElementwiseKernels& elementwise_kernels() {
#if defined(__x86_64__)
    const char* name = instruction_set();
    if (std::strncmp(name, "avx512", 6) == 0) return avx512::ELEMENTWISE;
    if (std::strncmp(name, "avx2", 4) == 0) return avx2::ELEMENTWISE;
#endif
    return portable::ELEMENTWISE;
}

void angles_of(int32_t position, const float* frequencies, int64_t count, float magnitude, float* out) {
    for (int64_t i = 0; i < count; ++i) {
        const float angle = static_cast<float>(position) * frequencies[i];
        out[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * magnitude);
        out[count + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * magnitude);
    }
}

}  // namespace ridgeline
