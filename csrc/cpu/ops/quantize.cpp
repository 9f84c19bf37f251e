#include "cpu/ops/quantize.h"

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_INTEGER_TABLE(QuantizeKernels, quantize)

namespace {

bool known_bits(int bits) { return bits == 8 || bits == 6; }

Status check(const QuantizeProblem& p) {
    if (p.outer < 0 || p.channels < 0 || p.inner < 0) return Status::bad_shape;
    if (!known(p.dtype) || !known_bits(p.bits)) return Status::bad_dtype;
    return Status::ok;
}

// A value for each channel, also where there is one for all.
struct OfChannels {
    const QuantizeProblem* p;
    float scale(int64_t c) const { return p->scale[p->scale_of_channel ? c : 0]; }
    int32_t zero_point(int64_t c) const { return p->zero_point[p->zero_point_of_channel ? c : 0]; }
    bool differ() const { return p->scale_of_channel || p->zero_point_of_channel; }
};

// Calls run(c, first, count) on runs of elements of channel c, or of all where channels do not differ. Where they alternate it calls
// rows(first, rows) on all channels of so many, after prepare().
template <class Run, class Prepare, class Rows>
void walk(const QuantizeProblem& p, int threads, const Run& run, const Prepare& prepare, const Rows& rows) {
    const int64_t count = p.outer * p.channels * p.inner, bytes = count * (element_size(p.dtype) + 1);
    if (!OfChannels{&p}.differ()) return share_run(count, bytes, threads, [&](int64_t first, int64_t part) { run(0, first, part); });
    if (p.inner == 1) prepare();
    const int64_t runs = p.inner == 1 ? p.outer : p.outer * p.channels;
    parallel_region(threads_for(bytes, runs, threads), [&](const Team& team) {
        team.share(runs, [&](int64_t first, int64_t last) {
            if (p.inner == 1) return rows(first * p.channels, last - first);
            for (int64_t i = first; i < last; ++i) run(i % p.channels, i * p.inner, p.inner);
        });
    });
}

// `count` rows of p.channels floats each.
float* channel_rows(const QuantizeProblem& p, int64_t count) {
    float* rows = thread_scratch().floats(count * p.channels);
    if (!rows) throw std::bad_alloc();
    return rows;
}

void run_quantize(const QuantizeProblem& p, int threads) {
    const QuantizeKernels& kernels = quantize_table.active();
    const int type = static_cast<int>(p.dtype);
    const int64_t element = element_size(p.dtype);
    const OfChannels of{&p};
    const auto* from = static_cast<const char*>(p.from);
    auto* to = static_cast<uint8_t*>(p.to);
    QByteChannels channels{};
    walk(
        p, threads,
        [&](int64_t c, int64_t first, int64_t count) {
            kernels.quantize[type](from + first * element, to + first, count, qbyte(of.scale(c), of.zero_point(c), p.bits));
        },
        [&] {
            float* rows = channel_rows(p, 4);
            float *inverse = rows, *low = rows + p.channels, *high = low + p.channels;
            auto* zero_point = reinterpret_cast<int32_t*>(high + p.channels);
            for (int64_t c = 0; c < p.channels; ++c) {
                const QByte byte = qbyte(of.scale(c), of.zero_point(c), p.bits);
                inverse[c] = byte.inverse, low[c] = byte.low, high[c] = byte.high, zero_point[c] = byte.zero_point;
            }
            channels = {inverse, low, high, zero_point};
        },
        [&](int64_t first, int64_t count) {
            kernels.quantize_channels[type](from + first * element, to + first, count, p.channels, channels);
        });
}

void run_dequantize(const QuantizeProblem& p, int threads) {
    const QuantizeKernels& kernels = quantize_table.active();
    const int type = static_cast<int>(p.dtype);
    const int64_t element = element_size(p.dtype);
    const OfChannels of{&p};
    const auto* from = static_cast<const uint8_t*>(p.from);
    auto* to = static_cast<char*>(p.to);
    QRealChannels channels{};
    walk(
        p, threads,
        [&](int64_t c, int64_t first, int64_t count) {
            kernels.dequantize[type](from + first, to + first * element, count, qreal(of.scale(c), of.zero_point(c)));
        },
        [&] {
            float* rows = channel_rows(p, 3);
            float *scale = rows, *high = rows + p.channels;
            auto* low = reinterpret_cast<int32_t*>(high + p.channels);
            for (int64_t c = 0; c < p.channels; ++c) {
                const QReal real = qreal(of.scale(c), of.zero_point(c));
                scale[c] = real.scale, high[c] = real.high, low[c] = real.low;
            }
            channels = {scale, high, low};
        },
        [&](int64_t first, int64_t count) {
            kernels.dequantize_channels[type](from + first, to + first * element, count, p.channels, channels);
        });
}

bool zero_points_fit(const QuantizeProblem& p) {
    for (int64_t c = 0; c < (p.zero_point_of_channel ? p.channels : 1); ++c)
        if (!writable(p.zero_point[c])) return false;
    return true;
}

}  // namespace

Status quantize(const QuantizeProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (!zero_points_fit(p)) return Status::overflow;
    if (p.outer == 0 || p.channels == 0 || p.inner == 0) return Status::ok;
    return caught([&] { run_quantize(p, threads); });
}

Status dequantize(const QuantizeProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.outer == 0 || p.channels == 0 || p.inner == 0) return Status::ok;
    return caught([&] { run_dequantize(p, threads); });
}

Status quantize_rows(const QuantizeRowsProblem& p, int threads) {
    if (p.rows < 0 || p.depth < 0) return Status::bad_shape;
    if (!known(p.dtype) || !known_bits(p.bits)) return Status::bad_dtype;
    const auto kernel = quantize_table.active().quantize_rows[static_cast<int>(p.dtype)];
    parallel_region(threads_for(p.rows * p.depth * (element_size(p.dtype) + 1), p.rows, threads),
                    [&](const Team& team) { team.share(p.rows, [&](int64_t first, int64_t last) { kernel(p, first, last); }); });
    return Status::ok;
}

}  // namespace mvit
