#include "cpu/core/row_source.h"

#include <cmath>

namespace mvit {

RowSource row_source(const void* a, int64_t stride, int64_t depth, const Moments* moments, float eps) {
    RowSource source{};
    source.a = a;
    source.stride = stride;
    source.depth = depth;
    source.eps = eps;
    if (moments) {
        source.centred = true;
        source.mean = centre_of(moments->mean);
        source.scale = static_cast<float>(1.0 / std::sqrt(moments->variance + static_cast<double>(eps)));
    }
    return source;
}

}  // namespace mvit
