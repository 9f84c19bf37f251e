#include "cuda/primitives/launched.h"

#include <cuda_runtime_api.h>

namespace mvit::cuda {

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace mvit::cuda
