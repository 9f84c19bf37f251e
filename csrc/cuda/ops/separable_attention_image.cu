#include "cuda/ops/separable_attention_image.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <class T, int depth>
__global__ void __launch_bounds__(image_threads, 1)
    separable_attention_image_kernel(AttentionImageProblem problem, AttentionImageShared<depth> at) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    AttentionImage<T, depth>(problem, at, shared)();
}

// Blocks of a cluster for which the device has a place, with all of their shared memory: 8, 4, 2, or 1.
int most_cluster(int device) {
    static std::atomic<int> known[64];  // 0: not asked yet
    std::atomic<int>* const place = 0 <= device && device < 64 ? &known[device] : nullptr;
    if (const int most = place ? place->load(std::memory_order_relaxed) : 0) return most;
    int most = 1;
    const auto asked = launched("separable_attention_image", device, [&] {
        const auto kernel = separable_attention_image_kernel<f16, 16>;
        const int shared = shared_of_block(device);
        static SharedLimit limit;
        if (capability_major(device) != 9 || !limit.raise(kernel, shared, device)) return;
        for (most = 8; most > 1 && !has_place_for_cluster(most, kernel, image_threads, shared);) most /= 2;
    });
    if (place && asked.error == cudaSuccess) place->store(most, std::memory_order_relaxed);
    return most;
}

template <class T, int depth>
Launched launch(const AttentionImageProblem& p, int device, void* stream) {
    constexpr const char* kernel = "separable_attention_image";
    if (p.batch == 0 || p.height == 0 || p.width == 0) return {cudaSuccess, kernel};
    const int most = shared_of_block(device);
    const int cluster = blocks_of_image<depth>(p.height, p.width, p.patch_height, p.patch_width, most, most_cluster(device));
    if (cluster == 0) return {cudaErrorInvalidConfiguration, kernel};
    const auto of = [&](int images) {
        return AttentionImageShared<depth>(images, cluster, p.height, p.width, p.patch_height, p.patch_width);
    };
    int images = cluster > 1 ? 1 : images_of_block(p.batch, p.height * p.width, p.patch_height * p.patch_width, processors(device));
    while (images > 1 && of(images).bytes > most) --images;
    const auto at = of(images);
    const int64_t blocks = ceil_divide(p.batch, images) * cluster;
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    static SharedLimit limit;
    return launched(kernel, device, [&] {
        if (!limit.raise(separable_attention_image_kernel<T, depth>, most, device)) return;
        launch_in_clusters(cluster, separable_attention_image_kernel<T, depth>, static_cast<unsigned>(blocks), image_threads, at.bytes,
                           stream, p, at);
    });
}

}  // namespace

int separable_attention_image_blocks(int channels, int height, int width, int patch_height, int patch_width, int device) {
    int blocks = 0;
    if (height == 0 || width == 0) return blocks;
    with_attention_image(channels, [&]<int depth>() {
        blocks = blocks_of_image<depth>(height, width, patch_height, patch_width, shared_of_block(device), most_cluster(device));
    });
    return blocks;
}

int separable_attention_image_exchange(int channels) {
    int bytes = 0;
    with_attention_image(channels, [&]<int depth>() { bytes = AttentionImageShared<depth>::exchange; });
    return bytes;
}

Launched separable_attention_image(const SeparableAttentionImageProblem& p, int device, void* stream) {
    Launched done{cudaErrorInvalidConfiguration, "separable_attention_image"};
    with_attention_image(p.channels, [&]<int depth>() {
        done = p.dtype == DType::bf16 ? launch<bf16, depth>(p, device, stream) : launch<f16, depth>(p, device, stream);
    });
    return done;
}

}  // namespace mvit::cuda
