#include "cpu/ops/group_norm.h"

#include <cmath>
#include <new>
#include <vector>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(GroupNormKernels, group_norm)

namespace {

constexpr int64_t tile = 4096;           // values of which one Statistics is made: 16 KB of float32
constexpr int64_t pixels_a_block = 128;  // pixels whose channel sums are added in float32 before they are combined in float64

// What an image is normalised by.
struct Norm {
    Centre mean;
    double inverse_sigma;
};

size_t size(int64_t n) { return static_cast<size_t>(n); }
int code(const GroupNormProblem& p) { return static_cast<int>(p.dtype); }

const char* at(const void* data, const GroupNormProblem& p, int64_t element) {
    return static_cast<const char*>(data) + element * element_size(p.dtype);
}
char* at(void* data, const GroupNormProblem& p, int64_t element) { return static_cast<char*>(data) + element * element_size(p.dtype); }

Status check(const GroupNormProblem& p) {
    if (p.batch < 0 || p.channels < 0 || p.positions < 0) return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    return Status::ok;
}

// `tensors`: how many of the size of x a task reads or writes its share of.
int threads_of(const GroupNormProblem& p, int64_t tensors, int64_t tasks, int threads) {
    return threads_for(tensors * p.batch * p.channels * p.positions * element_size(p.dtype), tasks, threads);
}

int64_t pieces(int64_t count, int64_t piece) { return (count + piece - 1) / piece; }
int64_t at_most(int64_t left, int64_t piece) { return left < piece ? left : piece; }

// Channels first: body(plane, image, channel, first element) for each plane of `positions` elements.
template <class Body>
void each_plane(const GroupNormProblem& p, int64_t tensors, int threads, const Body& body) {
    const int64_t planes = p.batch * p.channels;
    parallel_for(planes, threads_of(p, tensors, planes, threads),
                 [&](int64_t plane) { body(plane, plane / p.channels, plane % p.channels, plane * p.positions); });
}

// Channels last: body(block, image, first element, pixels) for each block of at most pixels_a_block pixels.
template <class Body>
void each_block(const GroupNormProblem& p, int64_t tensors, int threads, const Body& body) {
    const int64_t an_image = pieces(p.positions, pixels_a_block), blocks = p.batch * an_image;
    parallel_for(blocks, threads_of(p, tensors, blocks, threads), [&](int64_t block) {
        const int64_t image = block / an_image, first = block % an_image * pixels_a_block;
        body(block, image, (image * p.positions + first) * p.channels, at_most(p.positions - first, pixels_a_block));
    });
}

Norm norm_of(const Statistics* parts, int64_t count, float eps) {
    const Moments moments = combine(parts, count);
    return {centre_of(moments.mean), 1.0 / std::sqrt(moments.variance + static_cast<double>(eps))};
}

int64_t tiles_of(const GroupNormProblem& p) { return pieces(p.channels * p.positions, tile); }

// Statistics of tiles first to last of those of all images, to the same places of `parts`.
void gather(const GroupNormProblem& p, const GroupNormKernels& kernels, int64_t first, int64_t last, Statistics* parts) {
    const int64_t count = p.channels * p.positions, an_image = tiles_of(p);
    for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / an_image, begin = i % an_image * tile;
        parts[i] = kernels.statistics[code(p)](at(p.x, p, image * count + begin), at_most(count - begin, tile));
    }
}

std::vector<Norm> norms_of(const GroupNormProblem& p, const GroupNormKernels& kernels, int threads) {
    const int64_t an_image = tiles_of(p), tiles = p.batch * an_image;
    std::vector<Statistics> parts(size(tiles));
    parallel_for(tiles, threads_of(p, 1, tiles, threads), [&](int64_t i) { gather(p, kernels, i, i + 1, parts.data()); });
    std::vector<Norm> norms(size(p.batch));
    for (int64_t image = 0; image < p.batch; ++image) norms[size(image)] = norm_of(parts.data() + image * an_image, an_image, p.eps);
    return norms;
}

// weight / sigma, a value an image and channel.
std::vector<float> scales_of(const GroupNormProblem& p, const std::vector<Norm>& norms) {
    std::vector<float> scales(size(p.batch * p.channels));
    for (int64_t i = 0; i < p.batch * p.channels; ++i)
        scales[size(i)] = static_cast<float>(norms[size(i / p.channels)].inverse_sigma * static_cast<double>(p.weight[i % p.channels]));
    return scales;
}

// y of `count` planes or pixels of an image, from the first on.
void normalize(const GroupNormProblem& p, const GroupNormKernels& kernels, int64_t image, int64_t first, int64_t count, const Norm& of) {
    const auto kernel = (p.channels_last ? kernels.normalize_pixels : kernels.normalize_planes)[code(p)];
    const int64_t run = p.channels_last ? p.channels : p.positions, begin = image * p.channels * p.positions + first * run;
    const int64_t channel = p.channels_last ? 0 : first;
    kernel(at(p.x, p, begin), at(p.y, p, begin), count, run, of.mean, static_cast<float>(of.inverse_sigma), p.weight + channel,
           p.bias + channel);
}

Status forward(const GroupNormProblem& p, int threads) {
    const GroupNormKernels& kernels = group_norm_table.active();
    const int64_t an_image = tiles_of(p), tiles = p.batch * an_image, units = p.channels_last ? p.positions : p.channels;
    // In the scratch memory of the calling thread, for all threads of the region.
    Statistics* parts = reinterpret_cast<Statistics*>(thread_scratch().floats(tiles * int64_t{sizeof(Statistics) / sizeof(float)}));
    if (parts == nullptr) return Status::out_of_memory;
    parallel_region(threads_of(p, 2, tiles, threads), [&](const Team& team) {
        if (p.batch % team.size == 0 || p.batch >= 4 * team.size) {  // an image a thread: it is still in the cache when y is written
            team.share(p.batch, [&](int64_t first, int64_t last) {
                for (int64_t image = first; image < last; ++image) {
                    gather(p, kernels, image * an_image, (image + 1) * an_image, parts);
                    normalize(p, kernels, image, 0, units, norm_of(parts + image * an_image, an_image, p.eps));
                }
            });
            return;
        }
        team.share(tiles, [&](int64_t first, int64_t last) { gather(p, kernels, first, last, parts); });
        team.wait();  // and every thread combines for itself: that takes less than another wait
        team.share(p.batch * units, [&](int64_t first, int64_t last) {
            for (int64_t image = first / units; image * units < last; ++image) {
                const int64_t begin = image * units < first ? first - image * units : 0;
                const int64_t end = at_most(last - image * units, units);
                normalize(p, kernels, image, begin, end - begin, norm_of(parts + image * an_image, an_image, p.eps));
            }
        });
    });
    return Status::ok;
}

// sums[image][2][channel]: sum dy and sum dy (x - mean), in float64.
std::vector<double> channel_sums(const GroupNormProblem& p, const GroupNormKernels& kernels, const std::vector<Norm>& norms, int threads) {
    std::vector<double> sums(size(p.batch * 2 * p.channels), 0.0);
    if (!p.channels_last) {
        each_plane(p, 2, threads, [&](int64_t, int64_t image, int64_t c, int64_t begin) {
            double* total = sums.data() + image * 2 * p.channels + c;
            for (int64_t first = 0; first < p.positions; first += tile) {
                float part[2];
                kernels.sum_plane[code(p)](at(p.x, p, begin + first), at(p.dy, p, begin + first), at_most(p.positions - first, tile),
                                           norms[size(image)].mean, part);
                total[0] += static_cast<double>(part[0]);
                total[p.channels] += static_cast<double>(part[1]);
            }
        });
        return sums;
    }
    const int64_t an_image = pieces(p.positions, pixels_a_block), width = 2 * p.channels;
    std::vector<float> parts(size(p.batch * an_image * width));
    each_block(p, 2, threads, [&](int64_t block, int64_t image, int64_t begin, int64_t pixels) {
        kernels.sum_pixels[code(p)](at(p.x, p, begin), at(p.dy, p, begin), pixels, p.channels, norms[size(image)].mean,
                                    parts.data() + block * width);
    });
    for (int64_t block = 0; block < p.batch * an_image; ++block)
        for (int64_t i = 0; i < width; ++i) sums[size(block / an_image * width + i)] += static_cast<double>(parts[size(block * width + i)]);
    return sums;
}

void backward(const GroupNormProblem& p, int threads) {
    const GroupNormKernels& kernels = group_norm_table.active();
    const std::vector<Norm> norms = norms_of(p, kernels, threads);
    const std::vector<double> sums = channel_sums(p, kernels, norms, threads);
    const std::vector<float> scales = scales_of(p, norms);
    const double count = static_cast<double>(p.channels * p.positions);

    std::vector<float> shifts(size(p.batch)), slopes(size(p.batch));
    std::vector<double> dweight(size(p.channels), 0.0), dbias(size(p.channels), 0.0);
    for (int64_t image = 0; image < p.batch; ++image) {
        const double inverse = norms[size(image)].inverse_sigma;
        const double* plain = sums.data() + image * 2 * p.channels;
        double s1 = 0.0, s2 = 0.0;
        for (int64_t c = 0; c < p.channels; ++c) {
            const double weight = static_cast<double>(p.weight[c]), weighted = plain[p.channels + c] * inverse;
            dbias[size(c)] += plain[c];
            dweight[size(c)] += weighted;
            s1 += weight * plain[c];
            s2 += weight * weighted;
        }
        shifts[size(image)] = static_cast<float>(-s1 / count * inverse);
        slopes[size(image)] = static_cast<float>(-s2 / count * inverse * inverse);
    }
    for (int64_t c = 0; c < p.channels; ++c) {
        p.dweight[c] = static_cast<float>(dweight[size(c)]);
        p.dbias[c] = static_cast<float>(dbias[size(c)]);
    }

    if (!p.channels_last) {
        each_plane(p, 3, threads, [&](int64_t plane, int64_t image, int64_t, int64_t begin) {
            kernels.gradient_plane[code(p)](at(p.x, p, begin), at(p.dy, p, begin), at(p.dx, p, begin), p.positions, norms[size(image)].mean,
                                            scales[size(plane)], shifts[size(image)], slopes[size(image)]);
        });
    } else {
        each_block(p, 3, threads, [&](int64_t, int64_t image, int64_t begin, int64_t pixels) {
            kernels.gradient_pixels[code(p)](at(p.x, p, begin), at(p.dy, p, begin), at(p.dx, p, begin), pixels, p.channels,
                                             norms[size(image)].mean, scales.data() + image * p.channels, shifts[size(image)],
                                             slopes[size(image)]);
        });
    }
}

}  // namespace

Status group_norm(const GroupNormProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.channels == 0 || p.positions == 0) return Status::ok;
    return forward(p, threads);
}

Status group_norm_backward(const GroupNormProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    for (int64_t c = 0; c < p.channels; ++c) p.dweight[c] = p.dbias[c] = 0.0f;
    if (p.batch == 0 || p.channels == 0 || p.positions == 0) return Status::ok;
    try {
        backward(p, threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace mvit
