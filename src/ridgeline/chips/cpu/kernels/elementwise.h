// The ops that are not products: norms, rope, activations and their like, row by row.
//
// Every function works on whole rows; the bits of a row depend on that row alone. Knows nothing of steps or threads.
#pragma once

#include <cstdint>

namespace ridgeline {

enum class Activation : int32_t { Silu = 0, GeluTanh = 1 };

struct ElementwiseKernels {
    // y[i] = x[i] / sqrt(mean of x² + epsilon) * weight[i]; x may be y.
    void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t width, float* y);
    // y += x, y = y + x in place of a sum kept apart; x and y may be any rows.
    void (*add)(const float* x, const float* y, int64_t width, float* out);
    void (*multiply)(const float* x, const float* y, int64_t width, float* out);
    void (*scale)(const float* x, float factor, int64_t width, float* out);
    void (*activate)(const float* x, Activation kind, int64_t width, float* out);
    // out = activate(gate) * up, each rounded as the two ops after one another.
    void (*activate_multiply)(const float* gate, const float* up, Activation kind, int64_t width, float* out);
    void (*softcap)(const float* x, float cap, int64_t width, float* out);
    // Turns each of `num_heads` heads of `head_width`; angles are R/2 cosines, then R/2 sines. x may be out.
    void (*rope)(const float* x, const float* angles, int64_t num_heads, int64_t head_width, int64_t turned_width,
                 float* out);
};

// The kernels for the instruction set that matmul.h chose.
const ElementwiseKernels& elementwise_kernels();

// Cosines and sines of position * frequency, the product rounded to float, times magnitude; out is 2 * count floats.
void angles_of(int32_t position, const float* frequencies, int64_t count, float magnitude, float* out);

namespace portable {
extern const ElementwiseKernels ELEMENTWISE;
}
#if defined(__x86_64__)
namespace avx2 {
extern const ElementwiseKernels ELEMENTWISE;
}
namespace avx512 {
extern const ElementwiseKernels ELEMENTWISE;
}
#endif

}  // namespace ridgeline
