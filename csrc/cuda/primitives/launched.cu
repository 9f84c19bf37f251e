#include "cuda/primitives/launched.h"

#include <cuda_runtime_api.h>

namespace mvit::cuda {

int shared_of_block(int device) {
    int bytes = 0;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
    return bytes;
}

int shared_of_each(int blocks, int device) {
    int bytes = 0, reserved = 0;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device) != cudaSuccess) return 0;
    const int each = bytes / blocks - reserved, most = shared_of_block(device);
    return each < most ? each : most;
}

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace mvit::cuda
