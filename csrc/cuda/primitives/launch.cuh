// How entry points launch: on the device and stream of the caller, with the error of the launch and no other. Nothing waits for the device
// and nothing is allocated, so that every call can be captured into a CUDA graph.
//
// This runtime is linked in (libcudart_static) beside that of torch. Both use a device's primary context and the driver's streams, and a
// thread has one current context for both; so the device that was current before a call is current again after it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/primitives/launched.h"

namespace mvit::cuda {

class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : device_(device) {
        error_ = cudaGetDevice(&before_);
        if (error_ == cudaSuccess && before_ != device_) error_ = cudaSetDevice(device_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    ~DeviceGuard() {
        if (error_ == cudaSuccess && before_ != device_) cudaSetDevice(before_);
    }
    cudaError_t error() const { return error_; }

  private:
    int device_, before_ = 0;
    cudaError_t error_;
};

// launch() between a look at the device and one at what came of it.
template <class Launch>
Launched launched(const char* kernel, int device, const Launch& launch) {
    const DeviceGuard guard(device);
    if (guard.error() != cudaSuccess) return {static_cast<int>(guard.error()), kernel};
    cudaGetLastError();  // an error that an earlier call has told already
    launch();
    return {static_cast<int>(cudaGetLastError()), kernel};
}

inline int processors(int device) {
    int count = 0;
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
    return count;
}

}  // namespace mvit::cuda
