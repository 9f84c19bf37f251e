// Where the outputs of a bilinear interpolation lie between its inputs, along one axis: the coordinates of
// torch.nn.functional.interpolate, in float64. Output i lies at
//
//     at = i (in - 1) / (out - 1) (0 for one output) with align_corners, else max((i + 0.5) in / out - 0.5, 0),
//
// between the inputs first = floor(at) and second = first + 1, or the last one; the weight of second is at - first.
#pragma once

#include <cmath>
#include <cstdint>

namespace mvit {

struct Between {
    int64_t first, second;
    double weight;  // of second; that of first is 1 - weight
};

class BetweenInputs {
  public:
    BetweenInputs(int64_t in, int64_t out, bool align_corners) : in_(in), align_corners_(align_corners) {
        const double inputs = static_cast<double>(in), outputs = static_cast<double>(out);
        scale_ = !align_corners ? inputs / outputs : out > 1 ? (inputs - 1.0) / (outputs - 1.0) : 0.0;
    }
    Between operator[](int64_t i) const {
        double at = static_cast<double>(i) * scale_;
        if (!align_corners_) at = std::fmax((static_cast<double>(i) + 0.5) * scale_ - 0.5, 0.0);
        const double floor = std::fmin(std::floor(at), static_cast<double>(in_) - 1.0);
        const int64_t first = static_cast<int64_t>(floor);
        return {first, first + 1 < in_ ? first + 1 : first, std::fmin(at - floor, 1.0)};
    }

  private:
    int64_t in_;
    bool align_corners_;
    double scale_;
};

}  // namespace mvit
