#include "matmul_kernels.h"

namespace ridgeline {

const InstructionSet* neon_instruction_set() { return nullptr; }

}  // namespace ridgeline
