// Integer weights in the order of tensor cores, for the tests of the CUDA kernels. Written from what cuda/primitives/qfragments.h says,
// value by value.
#pragma once

#include "cuda/primitives/qfragments.h"
#include "tests/qweights.h"

namespace mvit::tests {

// `value(n, k)` for k < depth, which need not be the depth of a weight: that of a convolution has gaps.
class FragmentMatrix {
  public:
    template <class Value>
    FragmentMatrix(int64_t columns, int64_t depth, int bits, const Value& value)
        : tiles_(round_up(columns, 64) * round_up(depth, 64) * bits / 8),
          weight{reinterpret_cast<const uint8_t*>(tiles_.data()), columns, depth, bits} {
        std::memset(tiles_.data(), 0, static_cast<size_t>(tiles_.size()));
        const int64_t deep = round_up(depth, 64) / 32, tile = bits == 8 ? 512 : 384;
        for (int64_t n = 0; n < columns; ++n)
            for (int64_t k = 0; k < depth; ++k) {
                const int64_t lane = n % 8 * 4 + k % 16 / 4, word = n % 16 / 8 * 2 + k % 32 / 16;
                uint8_t* to = tiles_.data() + (n / 16 * deep + k / 32) * tile;
                const int v = value(n, k);
                if (bits == 8) {
                    to[lane * 16 + word * 4 + k % 4] = static_cast<uint8_t>(v);
                    continue;
                }
                const auto plane = [&](int64_t i) -> uint8_t& { return to[i * 128 + lane * 4 + k % 4]; };
                if (word < 3) {
                    plane(word) = static_cast<uint8_t>(plane(word) | (v & 63) << 2);
                } else {
                    for (int i = 0; i < 3; ++i) plane(i) = static_cast<uint8_t>(plane(i) | (v >> (4 - 2 * i) & 3));
                }
            }
    }
    FragmentMatrix(const FragmentMatrix&) = delete;
    FragmentMatrix& operator=(const FragmentMatrix&) = delete;

  private:
    Guarded<uint8_t> tiles_;

  public:
    cuda::QFragments weight;
};

// As a product of bytes takes it (cuda/ops/qproduct.cuh): of 32 columns, 8 t + 2 i and the next lie at 8 i + 2 t.
class ProductMatrix {
  public:
    template <class Value>
    ProductMatrix(int64_t columns, int64_t depth, int bits, const Value& value)
        : fragments_(round_up(columns, 32), depth, bits,
                     [&](int64_t place, int64_t k) {
                         const int64_t i = place % 32 / 8, t = place % 8 / 2, n = place - place % 32 + 8 * t + 2 * i + place % 2;
                         return n < columns ? static_cast<int>(value(n, k)) : 0;
                     }),
          weight(fragments_.weight) {
        weight.columns = columns;
    }

  private:
    FragmentMatrix fragments_;

  public:
    cuda::QFragments weight;
};

}  // namespace mvit::tests
