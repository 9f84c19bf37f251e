// How entry points launch: on the device and stream of the caller, with the error of the launch and no other. Nothing waits for the device
// and nothing is allocated, so that every call can be captured into a CUDA graph.
//
// This runtime is linked in (libcudart_static) beside that of torch. Both use a device's primary context and the driver's streams, and a
// thread has one current context for both; so the device that was current before a call is current again after it.
//
// On sm_90 a kernel is launched when the blocks of the one before it end, and waits in its first line, `wait_turn`, until all of that
// is done and visible, as mvit_kernels/triton_kernels/launch.py has it for newer ones, too.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "cuda/primitives/device.cuh"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

// The first line of every kernel: before anything that touches memory.
MVIT_DEVICE void wait_turn() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

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

// Clusters of so many blocks; launched early on devices of capability 9.x. What runs on newer ones is compiled for sm_80 (flags.txt), and
// waits for nothing.
class LaunchConfig {
  public:
    LaunchConfig(int major, int cluster, dim3 blocks, int threads, int shared, void* stream) {
        if (major == 9) {
            attributes_[config_.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attributes_[config_.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
        }
        if (cluster > 1) {
            attributes_[config_.numAttrs].id = cudaLaunchAttributeClusterDimension;
            attributes_[config_.numAttrs++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
        }
        config_.gridDim = blocks;
        config_.blockDim = dim3(static_cast<unsigned>(threads));
        config_.dynamicSmemBytes = static_cast<size_t>(shared);
        config_.stream = static_cast<cudaStream_t>(stream);
        config_.attrs = attributes_;
    }
    LaunchConfig(const LaunchConfig&) = delete;
    LaunchConfig& operator=(const LaunchConfig&) = delete;
    const cudaLaunchConfig_t* get() const { return &config_; }

  private:
    cudaLaunchAttribute attributes_[2] = {};
    cudaLaunchConfig_t config_{};
};

// 0 where there is no such device.
inline int capability_major(int device) {
    int major = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess ? major : 0;
}

// kernel<<<blocks, threads, shared, stream>>>(arguments...) of a kernel that begins with `wait_turn`, in clusters of so many blocks. Errors
// are the last ones of the runtime.
template <class... Parameters, class... Arguments>
void launch_in_clusters(int cluster, void (*kernel)(Parameters...), dim3 blocks, int threads, int shared, void* stream,
                        const Arguments&... arguments) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return;
    const LaunchConfig config(capability_major(device), cluster, blocks, threads, shared, stream);
    cudaLaunchKernelEx(config.get(), kernel, Parameters(arguments)...);
}

// Whether the current device has a place for a cluster of so many blocks: a part of a GPU may have too few multiprocessors side by side.
// Where it cannot be asked, the launch will tell.
template <class Kernel>
bool has_place_for_cluster(int cluster, Kernel kernel, int threads, int shared) {
    const LaunchConfig config(0, cluster, static_cast<unsigned>(cluster), threads, shared, nullptr);
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, config.get());
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess ? clusters > 0 : error != cudaErrorInvalidClusterSize;
}

template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared, void* stream, const Arguments&... arguments) {
    launch_in_clusters(1, kernel, blocks, threads, shared, stream, arguments...);
}

// What a kernel needs of shared memory beyond the 48 KB that every kernel has: asked for once a kernel and device.
class SharedLimit {
  public:
    // On the current device, `device`; where it fails, the error is the last one of the runtime.
    template <class Kernel>
    bool raise(Kernel kernel, int bytes, int device) {
        const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
        if (raised_.load(std::memory_order_acquire) & bit) return true;
        if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) return false;
        // Of what it shares with the first cache, too: two blocks on a multiprocessor are worth more than a larger cache.
        const int most = cudaSharedmemCarveoutMaxShared;
        if (cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, most) != cudaSuccess) return false;
        raised_.fetch_or(bit, std::memory_order_release);
        return true;
    }

  private:
    std::atomic<uint64_t> raised_{0};
};

inline int processors(int device) {
    int count = 0;
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
    return count;
}

}  // namespace mvit::cuda
