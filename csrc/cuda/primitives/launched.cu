#include "cuda/primitives/launched.h"

#include <cuda_runtime_api.h>

namespace mvit::cuda {

int shared_of_block(int device) {
    int bytes = 0;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
    return bytes;
}

int blocks_at_once(int bytes, int most, int device) {
    int all = 0, reserved = 0;
    if (cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device) != cudaSuccess) return 0;
    if (bytes > shared_of_block(device)) return 0;
    const int blocks = all / (bytes + reserved);
    return blocks < most ? blocks : most;
}

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace mvit::cuda
