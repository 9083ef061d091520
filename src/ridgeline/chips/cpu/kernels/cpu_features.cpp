#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ridgeline {

namespace {

#if defined(__x86_64__)

bool has_bit(uint32_t word, int bit) { return ((word >> bit) & 1) != 0; }

// Which register states the operating system saves (XCR0): an instruction set that it does not know is of no use.
uint64_t saved_states() {
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

// Bits: Intel SDM volume 2, CPUID, leaves 1 and 7.
CpuFeatures detect() {
    CpuFeatures features;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
    const bool os_saves_state = has_bit(c, 27);
    const bool fma = has_bit(c, 12), f16c = has_bit(c, 29);
    if (!os_saves_state) return features;
    const uint64_t states = saved_states();
    const bool saves_avx = (states & 0x6) == 0x6;
    const bool saves_avx512 = (states & 0xe6) == 0xe6;
    if (!saves_avx || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
    features.avx2 = has_bit(b, 5) && fma && f16c;
    features.avx512 = saves_avx512 && has_bit(b, 16) && has_bit(b, 30) && has_bit(b, 31) && has_bit(b, 17);
    features.avx512_vnni = features.avx512 && has_bit(c, 11);
    const uint32_t last_subleaf = a;
    if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        features.avx_vnni = features.avx2 && has_bit(a, 4);
        features.avx512_bf16 = features.avx512 && has_bit(a, 5);
    }
    return features;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
    CpuFeatures features;
#if defined(__APPLE__)
    features.neon_dot_product = true;  // every Apple chip that runs 64-bit macOS
#elif defined(__linux__)
    features.neon_dot_product = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
    return features;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = detect();
    return features;
}

}  // namespace ridgeline
