// Two products in a row on the pixels of an int16 stream, y = x + W_2 between(W_1 norm(x)), which is each half of a transformer layer: the
// feed-forward half (qfeed_forward.cuh), where between is a curve, and the attention half, where it is the gate by a context.
//
// A warp has 16 pixels, or 32, with all their channels, and keeps them in registers from the stream to the stream. What one product gives
// its threads is what the next one takes from them, since channels may lie in any order between the two:
//
//     norm       thread t of four reads channels 32 k + 8 t .. + 7 of its rows: bytes 4 t .. + 3 and 16 + 4 t .. + 3 of tile k of operand a
//     expand     of 32 hidden channels, a thread gets columns 2 t, 2 t + 1 of four products of 8: hidden channels 16 p + 4 t + 2 u + b of
//                the slice, product 2 p + u, which are bytes 16 p + 4 t .. + 3 of operand a of
//     reduce     whose products of 8 give it columns 32 k + 8 t .. + 7, as `product_column` has it (qproduct.cuh): those that it read
//
// (mma_s8.cuh has who holds what.) So nothing but weights goes through shared memory; they come slice by slice, while the slices before
// them are multiplied, and a step of two slices begins with the only barrier.
//
// Slices: of each 32 hidden channels, one slice after the other,
//
//     numbers    rows of 32 words: what sums of the first product begin with, in two rows, each two neighbours twice, as threads have them
//                of both halves of the rows; then what `between` asks for, one a channel
//     expand     2 tiles of 16 columns, of each `depth` tiles of 32 channels         in the order of tensor cores (qfragments.h), 8 bits;
//     reduce     2 `depth` tiles of 16 columns, one tile deep                        columns and channels in the order above
//
// zeros beyond the channels and the hidden channels: what a thread has there is whatever it is, and meets weights of 0.
//
// A product of tensor cores is for 16 rows and 8 columns, so two of them read 512 bytes of a tile; warps of 32 rows halve the reads, and
// take twice the registers. qfeed_forward.h has what binds.
#pragma once

#include "cuda/ops/qpair.h"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qeight.cuh"
#include "cuda/primitives/qfragments.h"
#include "cuda/primitives/warp.cuh"

namespace mvit::cuda {

inline constexpr int pair_together = 2;   // slices of a step
inline constexpr int pair_init_rows = 2;  // of numbers

template <int depth>
struct QPairFewShape;

// Tiles of 32 channels; what a warp has, and a block. Registers: 16 `depth` for the sums, 4 `depth` for the operand, 16 for the sums of a
// slice, each times `rounds`, and some 45.
template <int depth_>
struct QPairShape {
    using Few = QPairFewShape<depth_>;
    static constexpr int depth = depth_, rounds = depth <= 4 ? 2 : 1;  // rounds: of 16 rows
    static constexpr int pixels = 16 * rounds;
    static constexpr int warps = depth <= 4 ? 4 : depth <= 6 ? 6 : 8, threads = warps * warp_size;
    static constexpr int blocks = depth <= 3 ? 3 : depth <= 6 ? 2 : 1;  // on a multiprocessor at once

    // Bytes of a slice with so many rows of numbers, and of shared memory.
    MVIT_BOTH static constexpr int slice_bytes(int numbers) { return numbers * pair_slice * 4 + 4 * depth * tile_bytes(8); }
    MVIT_BOTH static constexpr int stages_bytes(int numbers) { return 2 * pair_together * slice_bytes(numbers); }
};

// The same in blocks of four warps, more of which are on a multiprocessor: where wider ones would leave multiprocessors idle.
template <int depth_>
struct QPairFewShape : QPairShape<depth_> {
    static constexpr int warps = 4, threads = warps * warp_size;
    static constexpr int blocks = QPairShape<depth_>::warps * QPairShape<depth_>::blocks / warps;
};

template <class Shape>
inline constexpr bool has_few = Shape::warps > Shape::Few::warps;

// body<Of<depth>>() with the least depth that has so many channels; not at all where none has.
template <template <int> class Of = QPairShape, int most = pair_channels, int depth = 1, class Body>
void with_pair_shape(int channels, const Body& body) {
    if constexpr (depth * 32 <= most) {
        if (channels <= depth * 32) {
            body.template operator()<Of<depth>>();
        } else {
            with_pair_shape<Of, most, depth + 1>(channels, body);
        }
    }
}

// Which pixels a warp has: neighbours in one image, whose pieces these are.
template <class Shape>
struct QPairPixels {
    int64_t image;
    int first, pixels;

    MVIT_BOTH static int pieces(int pixels) {
        return static_cast<int>((static_cast<uint32_t>(pixels) + Shape::pixels - 1) / Shape::pixels);
    }

    MVIT_DEVICE QPairPixels(uint32_t piece, int pixels_)
        : image(piece / static_cast<uint32_t>(pieces(pixels_))),
          first(static_cast<int>(piece % static_cast<uint32_t>(pieces(pixels_))) * Shape::pixels),
          pixels(pixels_) {}
    MVIT_DEVICE int64_t operator()(int row) const { return row < pixels - first ? image * pixels + first + row : -1; }
};

// The weights of a block on their way.
template <class Shape>
struct QPairSlices {
    const uint8_t* from;
    uint8_t* stages;
    int bytes, count;  // of a slice; slices

    // The first step's, by all threads, before `each`.
    MVIT_DEVICE void begin() const {
        load(0);
        cp_async_commit();
    }

    // body(slice) of each slice in shared memory. Step s loads into the stage that step s - 1 has read: all have left that at the barrier.
    template <class Body>
    MVIT_DEVICE void each(const Body& body) const {
        MVIT_ROLLED
        for (int step = 0; step * pair_together < count; ++step) {
            cp_async_wait<0>();
            block_barrier();
            load(step + 1);
            cp_async_commit();
            MVIT_ROLLED
            for (int i = 0; i < pair_together && step * pair_together + i < count; ++i) body(stage(step) + i * bytes);
        }
    }

  private:
    MVIT_DEVICE uint8_t* stage(int step) const { return stages + (step & 1) * pair_together * bytes; }
    MVIT_DEVICE void load(int step) const {
        const int first = step * pair_together, left = count - first, size = (left < pair_together ? left : pair_together) * bytes;
        const uint8_t* own = from + int64_t{first} * bytes;
        MVIT_ROLLED
        for (int i = 16 * thread_index(); i < size; i += 16 * Shape::threads) cp_async16(stage(step) + i, own + i, 16);
    }
};

// t = (x - mean) factor of a group.
struct QPairNormal {
    float mean, factor;

    MVIT_DEVICE static QPairNormal of(const QPairNorm& n, int64_t sum, int64_t squares, int64_t values) {
        const double count = static_cast<double>(values), mean = static_cast<double>(sum) / count;
        const double difference = static_cast<double>(squares) / count - mean * mean, variance = difference > 0.0 ? difference : 0.0;
        return {static_cast<float>(mean), static_cast<float>(n.ratio / sqrt(variance * n.square + n.eps))};
    }
    // Of an image; by all lanes of a warp.
    MVIT_DEVICE static QPairNormal of_image(const QPairNorm& n, int64_t image, int64_t values, int lane) {
        const int64_t* pieces = n.sums + 2 * image * n.pieces;
        int64_t sum = 0, squares = 0;
        MVIT_ROLLED
        for (int i = lane; i < n.pieces; i += warp_size) sum += pieces[2 * i], squares += pieces[2 * i + 1];
        return of(n, of_warp(sum), of_warp(squares), values);
    }
};

// Bytes of numbers t: rint(min(max(t, low), high)) + z, which low and high keep within a byte.
//
// rint(t) + z is one sum with a number whose last place is 1, as long as that is even, which ties look at: it has z, and 1 more where z is
// odd. That goes again from two values at once, which are 1 .. 256 then.
class QPairBytes {
  public:
    MVIT_DEVICE QPairBytes(float low, float high, int32_t zero_point)
        : low_(low),
          high_(high),
          magic_(0x1.8p23f + static_cast<float>(zero_point + (zero_point & 1))),
          odd_((zero_point & 1) * 0x00010001u) {}

    MVIT_DEVICE uint32_t operator()(const float (&t)[four]) const { return permute(two(t[0], t[1]), two(t[2], t[3]), 0x6420); }
    // Of four values of the stream.
    MVIT_DEVICE uint32_t operator()(uint32_t a, uint32_t b, QPairNormal normal) const {
        float t[four];
        MVIT_UNROLL
        for (int i = 0; i < four; ++i)
            t[i] = (static_cast<float>(static_cast<int16_t>((i < 2 ? a : b) >> (16 * (i % 2)))) - normal.mean) * normal.factor;
        return (*this)(t);
    }

  private:
    MVIT_DEVICE uint32_t bits(float t) const { return float_bits(fminf(fmaxf(t, low_), high_) + magic_); }
    MVIT_DEVICE uint32_t two(float a, float b) const { return permute(bits(a), bits(b), 0x5410) - odd_; }

    float low_, high_, magic_;
    uint32_t odd_;
};

// Sum and sum of squares of some hundred values: with h their high bytes and l the low ones, which are not negative, a value is 256 h + l
// and its square 2^16 h^2 + 2^9 h l + l^2; sums of such products come four at a time.
class QPairSums {
  public:
    MVIT_DEVICE void add(const Words<4>& x) {
        constexpr uint32_t ones = 0x01010101;
        MVIT_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const uint32_t low = permute(x.v[i], x.v[i + 1], 0x6420), high = permute(x.v[i], x.v[i + 1], 0x7531);
            low_ = dot4_unsigned(low, ones, low_), high_ = dot4_signed(high, ones, high_);
            low_low_ = dot4_unsigned(low, low, low_low_), low_high_ = dot4(low, high, low_high_);
            high_high_ = dot4_signed(high, high, high_high_);
        }
    }
    MVIT_DEVICE int32_t sum() const { return 256 * high_ + static_cast<int32_t>(low_); }
    MVIT_DEVICE int64_t squares() const { return 65536 * int64_t{high_high_} + 512 * int64_t{low_high_} + int64_t{low_low_}; }

  private:
    uint32_t low_ = 0, low_low_ = 0;
    int32_t high_ = 0, low_high_ = 0, high_high_ = 0;
};

// A warp's part. Place: `image`, whose the pixels are; of a row 0 .. Shape::pixels - 1, place(row) is which pixel of the stream it is, or
// -1.
template <class Shape>
class QPairWarp {
  public:
    static constexpr int depth = Shape::depth, rounds = Shape::rounds;
    using Operand = uint32_t[rounds][depth][4];
    using Hidden = int32_t[rounds][4][4];
    using Sums = int32_t[rounds][depth][4][4];

    MVIT_DEVICE explicit QPairWarp(int lane) : lane_(lane) {}

    // The rows' bytes. values: of an image.
    template <class Place>
    MVIT_DEVICE void normalise(const QPairNorm& n, const QPairStream& x, const Place& place, int64_t values, Operand& a) const {
        Words<4> rows[rounds][2][depth];
        each_row(place, [&](int i, int half, int64_t pixel) {
            MVIT_UNROLL
            for (int k = 0; k < depth; ++k) {
                const int c = channel(k), lanes = pixel < 0 ? 0 : x.channels - c;
                rows[i][half][k] = {};
                if (lanes > 0) rows[i][half][k] = load_eight<int16_t, 4>(x.x + pixel * x.channels + c, lanes, x.aligned);
            }
        });
        QPairNormal normals[rounds][2];
        if (n.sums) {
            const QPairNormal normal = QPairNormal::of_image(n, place.image, values, lane_);
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) normals[i][0] = normals[i][1] = normal;
        } else {
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) of_rows(n, rows[i], x.channels, normals[i]);
        }
        const QPairBytes bytes(n.low, n.high, n.zero_point);
        MVIT_UNROLL
        for (int i = 0; i < rounds; ++i) {
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                MVIT_UNROLL
                for (int k = 0; k < depth; ++k) {
                    MVIT_UNROLL
                    for (int j = 0; j < 2; ++j)
                        a[i][k][half + 2 * j] = bytes(rows[i][half][k].v[2 * j], rows[i][half][k].v[2 * j + 1], normals[i][half]);
                }
            }
        }
    }

    // What sums of the second product begin with.
    MVIT_DEVICE void begin(const QEpilogue& e, int columns, Sums& sums) const {
        MVIT_UNROLL
        for (int k = 0; k < depth; ++k) {
            const int column = channel(k);
            Quad<int32_t> init[2] = {};
            if (column < columns)
                init[0] = load_quad(e.channels.init + column, four, true), init[1] = load_quad(e.channels.init + column + four, four, true);
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) {
                MVIT_UNROLL
                for (int c = 0; c < 2 * eight; ++c) sums[i][k][c / 4][c % 4] = init[c / 8].v[c / 4 % 2 * 2 + c % 2];
            }
        }
    }

    // Sums of the slice's hidden channels, of which 16 p + 4 t + c lies in hidden[i][2 p + c / 2][2 half + c % 2].
    MVIT_DEVICE void expand(const uint8_t* slice, int numbers, const Operand& a, Hidden& hidden) const {
        const uint8_t* tiles = slice + numbers * pair_slice * 4 + 16 * lane_;
        MVIT_UNROLL
        for (int j = 0; j < 4; ++j) {
            const auto init = *reinterpret_cast<const Quad<int32_t>*>(slice + 16 * (j / 2 * 8 + lane_ % 4 * 2 + j % 2));
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) {
                MVIT_UNROLL
                for (int c = 0; c < 4; ++c) hidden[i][j][c] = init.v[c];
            }
        }
        MVIT_UNROLL
        for (int k = 0; k < depth; ++k) {
            MVIT_UNROLL
            for (int p = 0; p < 2; ++p) {
                const auto b = *reinterpret_cast<const Sixteen*>(tiles + (p * depth + k) * tile_bytes(8));
                MVIT_UNROLL
                for (int i = 0; i < rounds; ++i) {
                    mma_u8s8(hidden[i][2 * p], a[i][k], b.words[0], b.words[1]);
                    mma_u8s8(hidden[i][2 * p + 1], a[i][k], b.words[2], b.words[3]);
                }
            }
        }
    }

    // sums += the slice's part: between(sums of its hidden channels, what they become), where hidden channel 16 p + 4 t + c lies
    // in hidden[i][2 p + c / 2][2 half + c % 2], and in byte c of bytes[i][half + 2 p].
    template <class Between>
    MVIT_DEVICE void multiply(const uint8_t* slice, int numbers, const Operand& a, const Between& between, Sums& sums) const {
        Hidden hidden;
        expand(slice, numbers, a, hidden);
        uint32_t bytes[rounds][4];
        between(hidden, bytes);
        const uint8_t* tiles = slice + numbers * pair_slice * 4 + 2 * depth * tile_bytes(8) + 16 * lane_;
        MVIT_UNROLL
        for (int n = 0; n < 2 * depth; ++n) {
            const auto b = *reinterpret_cast<const Sixteen*>(tiles + n * tile_bytes(8));
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) {
                mma_u8s8(sums[i][n / 2][n % 2 * 2], bytes[i], b.words[0], b.words[1]);
                mma_u8s8(sums[i][n / 2][n % 2 * 2 + 1], bytes[i], b.words[2], b.words[3]);
            }
        }
    }

    // Numbers of hidden channels 16 p + 4 t .. + 3 of a slice.
    template <class T>
    MVIT_DEVICE Quad<T> hidden_quad(const uint8_t* slice, int row, int p) const {
        return *reinterpret_cast<const Quad<T>*>(slice + (row * pair_slice + 16 * p + 4 * (lane_ % 4)) * 4);
    }

    // body(block of 16 rows, half, which pixel) of each row that this thread has a part of.
    template <class Place, class Body>
    MVIT_DEVICE void each_row(const Place& place, const Body& body) const {
        MVIT_UNROLL
        for (int i = 0; i < rounds; ++i) {
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) body(i, half, place(16 * i + 8 * half + lane_ / 4));
        }
    }

    // y, an int16 stream, of the sums and the residual, both with rows of `columns` values. parts: two numbers, the sum and the sum of
    // squares of what this warp has of y; or null.
    template <class Place>
    MVIT_DEVICE void finish(const Sums& sums, const QEpilogue& e, int columns, const Place& place, int64_t* parts) const {
        parts ? finish_rows<true>(sums, e, columns, place, parts) : finish_rows<false>(sums, e, columns, place, parts);
    }

  private:
    // The first of the eight channels of tile k that are this thread's.
    MVIT_DEVICE int channel(int k) const { return 32 * k + eight * (lane_ % 4); }

    // Of two rows that four lanes have: each lane adds up one of them, and two share it.
    MVIT_DEVICE void of_rows(const QPairNorm& n, const Words<4> (&rows)[2][depth], int channels, QPairNormal (&normals)[2]) const {
        QPairSums sums[2];
        MVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
            MVIT_UNROLL
            for (int k = 0; k < depth; ++k) sums[half].add(rows[half][k]);
        }
        const bool second = lane_ % 2 != 0;
        const auto shared_of = [&](auto a, auto b) { return (second ? b : a) + shuffle_xor(second ? a : b, 1); };
        int32_t sum = shared_of(sums[0].sum(), sums[1].sum());
        int64_t square = shared_of(sums[0].squares(), sums[1].squares());
        sum += shuffle_xor(sum, 2), square += shuffle_xor(square, 2);
        const QPairNormal own = QPairNormal::of(n, sum, square, channels);
        const QPairNormal other{shuffle_xor(own.mean, 1), shuffle_xor(own.factor, 1)};
        normals[0] = second ? other : own, normals[1] = second ? own : other;
    }

    template <bool collects, class Place>
    MVIT_DEVICE void finish_rows(const Sums& sums, const QEpilogue& e, int columns, const Place& place, int64_t* parts) const {
        const bool aligned = pair_is_aligned(e.y, columns) && pair_is_aligned(e.residual, columns);
        const Stream<true> stream(e, 0, nullptr);
        int64_t pixels[rounds][2];
        each_row(place, [&](int i, int half, int64_t pixel) { pixels[i][half] = pixel; });
        // The residuals of the next tile are on their way while this one is finished: loads do not overtake stores.
        Words<4> values[2][rounds][2];
        const auto each_part = [&](int k, const auto& body) {
            const int column = channel(k), lanes = columns - column;
            if (lanes <= 0) return;
            MVIT_UNROLL
            for (int row = 0; row < 2 * rounds; ++row) {
                const int64_t pixel = pixels[row / 2][row % 2];
                if (pixel >= 0) body(row / 2, row % 2, pixel * columns + column, lanes);
            }
        };
        const auto load = [&](int k) {
            each_part(k, [&](int i, int half, int64_t at, int lanes) {
                values[k % 2][i][half] = load_eight<int16_t, 4>(static_cast<const int16_t*>(e.residual) + at, lanes, aligned);
            });
        };
        QPairSums own_sums;
        load(0);
        MVIT_UNROLL
        for (int k = 0; k < depth; ++k) {
            if (k + 1 < depth) load(k + 1);
            Quad<float> scale[2] = {};
            if (channel(k) < columns)
                scale[0] = load_quad(e.channels.scale + channel(k), four, true),
                scale[1] = load_quad(e.channels.scale + channel(k) + four, four, true);
            each_part(k, [&](int i, int half, int64_t at, int lanes) {
                Words<4>& own = values[k % 2][i][half];
                MVIT_UNROLL
                for (int quad = 0; quad < 2; ++quad) {
                    const auto sum_of = [&](int c) { return sums[i][k][2 * quad + c / 2][2 * half + c % 2]; };
                    stream(scaled({{sum_of(0), sum_of(1), sum_of(2), sum_of(3)}}, scale[quad]), own.v + 2 * quad);
                }
                store_eight<int16_t>(own, static_cast<int16_t*>(e.y) + at, lanes, aligned);
                if constexpr (collects) own_sums.add(own);
            });
        }
        if constexpr (collects) {
            const int64_t sum = of_warp(int64_t{own_sums.sum()}), squares = of_warp(own_sums.squares());
            if (lane_ == 0) parts[0] = sum, parts[1] = squares;
        }
    }

    int lane_;
};

}  // namespace mvit::cuda
