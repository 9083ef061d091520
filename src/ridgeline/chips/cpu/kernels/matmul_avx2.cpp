#include "matmul_kernels.h"

namespace ridgeline {

const InstructionSet* avx2_instruction_set() { return nullptr; }

}  // namespace ridgeline
