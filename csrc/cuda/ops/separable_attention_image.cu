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

template <class T, int depth>
Launched launch(const AttentionImageProblem& p, int device, void* stream) {
    constexpr const char* kernel = "separable_attention_image";
    if (p.batch == 0 || p.height == 0 || p.width == 0) return {cudaSuccess, kernel};
    const int pixels = p.height * p.width, phases = p.patch_height * p.patch_width, most = shared_of_block(device);
    const auto of = [&](int images) { return AttentionImageShared<depth>(images, p.height, p.width, p.patch_height, p.patch_width); };
    int images = images_of_block(p.batch, pixels, phases, processors(device));
    while (images > 1 && of(images).bytes > most) --images;
    const auto at = of(images);
    const int64_t blocks = ceil_divide(p.batch, images);
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    static SharedLimit limit;
    return launched(kernel, device, [&] {
        if (!limit.raise(separable_attention_image_kernel<T, depth>, most, device)) return;
        launch_early(separable_attention_image_kernel<T, depth>, static_cast<unsigned>(blocks), image_threads, at.bytes, stream, p, at);
    });
}

}  // namespace

int separable_attention_image_shared(int channels, int pixels, int phases) {
    int bytes = 0;
    if (pixels == 0 || phases > most_contexts) return bytes;
    with_attention_image(channels, [&]<int depth>() { bytes = AttentionImageShared<depth>(1, 1, pixels, 1, phases).bytes; });
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
