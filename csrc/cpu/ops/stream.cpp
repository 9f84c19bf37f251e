#include "cpu/ops/stream.h"

#include "cpu/core/isa.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_FLOAT_TABLE(StreamKernels, stream)

namespace {

constexpr int64_t bytes_an_element = sizeof(float) + sizeof(int16_t);

}  // namespace

Status to_stream(const StreamProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    const StreamKernels& kernels = stream_table.active();
    const float inverse = static_cast<float>(1.0 / static_cast<double>(p.scale));
    share_run(p.count, bytes_an_element * p.count, threads, [&](int64_t first, int64_t count) {
        kernels.to(static_cast<const float*>(p.from) + first, static_cast<int16_t*>(p.to) + first, count, inverse);
    });
    return Status::ok;
}

Status from_stream(const StreamProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    const StreamKernels& kernels = stream_table.active();
    share_run(p.count, bytes_an_element * p.count, threads, [&](int64_t first, int64_t count) {
        kernels.from(static_cast<const int16_t*>(p.from) + first, static_cast<float*>(p.to) + first, count, p.scale);
    });
    return Status::ok;
}

}  // namespace mvit
