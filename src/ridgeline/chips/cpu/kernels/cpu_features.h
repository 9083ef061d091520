// What this CPU and its operating system can run.
#pragma once

namespace ridgeline {

struct CpuFeatures {
    bool avx2 = false;  // with FMA and F16C
    bool avx_vnni = false;
    bool avx512 = false;  // F, BW, VL, DQ
    bool avx512_vnni = false;
    bool avx512_bf16 = false;
    bool neon_dot_product = false;
};

const CpuFeatures& cpu_features();

}  // namespace ridgeline
