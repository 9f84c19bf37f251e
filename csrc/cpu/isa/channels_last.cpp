// The loops of channels_last; see ops/channels_last.h. Compiled once an ISA.
//
// Many channels: squares of n channels by n pixels are transposed in registers. All channels of one cache line of pixels go before the next
// such line, so that a line of a plane is read at once, and lines of the result fill up while they are in cache. Three channels, those of
// an image, are woven from three vectors. Few others go element by element.
#include "cpu/ops/channels_last.h"

#include "cpu/core/isa.h"
#include "cpu/core/lanes.h"
#include "cpu/core/vector_bytes.h"

namespace mvit {
namespace {

// A perfect shuffle of a square's n^2 elements rotates the bits of their places by one; after log2 n of them rows and columns have changed
// places. Vectors of 16 bytes, which every instruction set weaves with one instruction; wider ones would read more planes at once, whose
// lines push each other out of the first cache where planes are a power of two apart.
template <class T>
struct Square {
    static constexpr int n = 16 / int{sizeof(T)};

    static void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
        using L = Lanes<T, n>;
        typename L::Vector x[n], y[n];
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) x[i] = L::load(from + i * from_stride);
#pragma GCC unroll 4
        for (int done = 1; done < n; done *= 2) {
#pragma GCC unroll 8
            for (int i = 0; i < n / 2; ++i) {
                y[2 * i] = L::low(x[i], x[i + n / 2]);
                y[2 * i + 1] = L::high(x[i], x[i + n / 2]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < n; ++i) x[i] = y[i];
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) L::store(x[i], to + i * to_stride);
    }
};

template <class T>
void one_by_one(const T* from, int64_t pixels, T* to, int64_t channels, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
        for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = from[c * pixels + i];
}

// Where a block of n begins that would begin at i, but must end before `end`: some of it may be done twice.
inline int64_t block_at(int64_t i, int64_t n, int64_t end) { return i + n <= end ? i : end - n; }

template <class T>
void squares(const T* from, int64_t pixels, T* to, int64_t channels, int64_t first, int64_t last) {
    constexpr int64_t n = Square<T>::n, line = 64 / sizeof(T);
    for (int64_t begin = first; begin < last; begin += line) {
        const int64_t end = begin + line < last ? begin + line : last;
        for (int64_t block = 0; block < channels; block += n) {
            const int64_t c = block_at(block, n, channels);
            for (int64_t i = begin; i < end; i += n) {
                const int64_t at = block_at(i, n, last);
                Square<T>::transpose(from + c * pixels + at, pixels, to + at * channels + c, channels);
            }
        }
    }
}

#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)

// Vectors of three planes as three vectors of pixels. Element e of these is channel e % 3 of pixel e / 3: first a and b are woven, then c
// comes in. Shuffles of any elements of two vectors are fast on whole vectors of 4 bytes, of smaller elements on 16 bytes.
template <class T>
struct Threes {
    static constexpr int n = (sizeof(T) == 4 ? vector_bytes : 16) / int{sizeof(T)};
    using L = Lanes<T, n>;
    using Vector = typename L::Vector;

    template <int k, int... j>
    static Vector woven(Vector a, Vector b, Vector c, std::integer_sequence<int, j...>) {
        const Vector ab = L::template pick<((k * n + j) % 3 == 1 ? n : 0) + (k * n + j) / 3 ...>(a, b);
        return L::template pick<((k * n + j) % 3 == 2 ? n + (k * n + j) / 3 : j)...>(ab, c);
    }

    static void run(const T* from, int64_t pixels, T* to, int64_t first, int64_t last) {
        using Places = std::make_integer_sequence<int, n>;
        int64_t i = first;
        for (; i + n <= last; i += n) {
            const Vector a = L::load(from + i), b = L::load(from + pixels + i), c = L::load(from + 2 * pixels + i);
            L::store(woven<0>(a, b, c, Places()), to + 3 * i);
            L::store(woven<1>(a, b, c, Places()), to + 3 * i + n);
            L::store(woven<2>(a, b, c, Places()), to + 3 * i + 2 * n);
        }
        one_by_one(from, pixels, to, 3, i, last);
    }
};

#else

template <class T>
struct Threes {
    static void run(const T* from, int64_t pixels, T* to, int64_t first, int64_t last) { one_by_one(from, pixels, to, 3, first, last); }
};

#endif

template <class T>
void run(const ChannelsLastProblem& p, int64_t image, int64_t first, int64_t last) {
    const T* from = static_cast<const T*>(p.from) + image * p.channels * p.pixels;
    T* to = static_cast<T*>(p.to) + image * p.channels * p.pixels;
    if (p.channels == 3) return Threes<T>::run(from, p.pixels, to, first, last);
    if (p.channels >= Square<T>::n && last - first >= Square<T>::n) return squares(from, p.pixels, to, p.channels, first, last);
    one_by_one(from, p.pixels, to, p.channels, first, last);
}

}  // namespace

extern const ChannelsLastKernels MVIT_ISA_SYMBOL(channels_last);
const ChannelsLastKernels MVIT_ISA_SYMBOL(channels_last) = {{run<uint8_t>, run<uint16_t>, run<uint32_t>}};

}  // namespace mvit
