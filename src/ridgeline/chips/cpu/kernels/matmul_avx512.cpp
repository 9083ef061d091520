#include "matmul_kernels.h"

namespace ridgeline {

const InstructionSet* avx512_instruction_set() { return nullptr; }

}  // namespace ridgeline
