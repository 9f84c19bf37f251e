#include "cpu/ops/patches.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_FLOAT_TABLE(PatchesKernels, patches)

namespace {

enum class Direction { unfold, fold };

Status check(const PatchesProblem& p) {
    const int size = p.element_size;
    if (size != 1 && size != 2 && size != 4 && size != 8) return Status::bad_dtype;
    if (p.batch < 0 || p.channels < 0 || p.height < 0 || p.width < 0 || p.patch_h < 1 || p.patch_w < 1) return Status::bad_shape;
    if (p.height % p.patch_h != 0 || p.width % p.patch_w != 0) return Status::bad_shape;
    return Status::ok;
}

int log2_of(int size) { return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3; }

// A task is one plane.
template <Direction direction>
void channels_first(const PatchesProblem& p, int threads) {
    const PatchesKernels& kernels = patches_table.active();
    const auto kernel = (direction == Direction::unfold ? kernels.unfold : kernels.fold)[log2_of(p.element_size)];
    const int64_t planes = p.batch * p.channels, plane_bytes = p.height * p.width * p.element_size;
    const PatchesPlane shape{p.height / p.patch_h, p.width / p.patch_w, p.patch_h, p.patch_w};
    parallel_region(threads_for(2 * planes * plane_bytes, planes, threads), [&](const Team& team) {
        team.share(planes, [&](int64_t first, int64_t last) {
            kernel(shape, last - first, static_cast<const char*>(p.from) + first * plane_bytes,
                   static_cast<char*>(p.to) + first * plane_bytes);
        });
    });
}

// A task is one row of an image; a pixel is one run of channels. The pixels of one phase go at once, to or from one place in memory.
template <Direction direction>
void channels_last(const PatchesProblem& p, int threads) {
    const PatchesKernels& kernels = patches_table.active();
    const int64_t pixel = p.channels * p.element_size, step = p.patch_w * pixel;
    const int64_t columns = p.width / p.patch_w, positions = p.height / p.patch_h * columns;
    const int64_t rows = p.batch * p.height;
    parallel_for(rows, threads_for(2 * rows * p.width * pixel, rows, threads), [&](int64_t row) {
        const int64_t image = row / p.height, y = row % p.height;
        const int64_t map = row * p.width,
                      runs = image * p.height * p.width + y % p.patch_h * p.patch_w * positions + y / p.patch_h * columns;
        const char* from = static_cast<const char*>(p.from);
        char* to = static_cast<char*>(p.to);
        for (int64_t x = 0; x < p.patch_w; ++x) {
            const int64_t in_map = (map + x) * pixel, in_runs = (runs + x * positions) * pixel;
            if constexpr (direction == Direction::unfold) {
                kernels.move(from + in_map, step, to + in_runs, pixel, columns, pixel);
            } else {
                kernels.move(from + in_runs, pixel, to + in_map, step, columns, pixel);
            }
        }
    });
}

template <Direction direction>
Status run(const PatchesProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.channels == 0 || p.height == 0 || p.width == 0) return Status::ok;
    if (p.channels_last) {
        channels_last<direction>(p, threads);
    } else {
        channels_first<direction>(p, threads);
    }
    return Status::ok;
}

}  // namespace

Status unfold_patches(const PatchesProblem& problem, int threads) { return run<Direction::unfold>(problem, threads); }
Status fold_patches(const PatchesProblem& problem, int threads) { return run<Direction::fold>(problem, threads); }

}  // namespace mvit
