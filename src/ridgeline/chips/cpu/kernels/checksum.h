// A fast 64-bit checksum against damage (not against malice): eight lanes of xor, rotate, multiply.
//
// Each step of a lane is a bijection of its state, so any change within one 8-byte word changes the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.h"

namespace ridgeline {

// Of `bytes` bytes, in pieces of 4 MiB that threads share; the result does not depend on the number of threads.
uint64_t checksum(ThreadPool& pool, const uint8_t* data, size_t bytes);

}  // namespace ridgeline
