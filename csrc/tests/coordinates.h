// Where torch.nn.functional.interpolate finds output i of a bilinear resize among its inputs, in double precision.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mvit::tests {

inline double coordinate(int64_t i, int64_t in, int64_t out, bool align_corners) {
    const double inputs = static_cast<double>(in), outputs = static_cast<double>(out);
    if (align_corners) return out > 1 ? static_cast<double>(i) * ((inputs - 1) / (outputs - 1)) : 0.0;
    return std::max((static_cast<double>(i) + 0.5) * (inputs / outputs) - 0.5, 0.0);
}

}  // namespace mvit::tests
