// One plane of a map <-> its runs of equal phase, and runs of bytes; see ops/patches.h. Two phases, the case of every published model, take
// two vectors apart, or together, by two permutes; compilers left to themselves do not find that in the loop over elements.
#include "cpu/ops/patches.h"

#include "cpu/core/isa.h"
#include "cpu/core/lanes.h"
#include "cpu/core/vector_bytes.h"

namespace mvit {
namespace {

using Plane = PatchesPlane;

constexpr int64_t chunk = 64;  // bytes that `move` copies at once

// After vectors of so many lanes come vectors of half as many, down to 8 bytes, and then single elements.
template <class T>
constexpr int next_lanes(int lanes) {
    return lanes * int{sizeof(T)} > 8 && lanes > 2 ? lanes / 2 : 1;
}

// Two phases from element i on, `lanes` elements of each a step, then fewer.
template <class T, int lanes>
inline void split_two(const T* from, T* even, T* odd, int64_t i, int64_t count) {
    if constexpr (lanes == 1) {
        for (; i < count; ++i) {
            even[i] = from[2 * i];
            odd[i] = from[2 * i + 1];
        }
    } else {
        using L = Lanes<T, lanes>;
        for (; i + lanes <= count; i += lanes) {
            const auto a = L::load(from + 2 * i), b = L::load(from + 2 * i + lanes);
            L::store(L::even(a, b), even + i);
            L::store(L::odd(a, b), odd + i);
        }
        split_two<T, next_lanes<T>(lanes)>(from, even, odd, i, count);
    }
}

template <class T, int lanes>
inline void join_two(const T* even, const T* odd, T* to, int64_t i, int64_t count) {
    if constexpr (lanes == 1) {
        for (; i < count; ++i) {
            to[2 * i] = even[i];
            to[2 * i + 1] = odd[i];
        }
    } else {
        using L = Lanes<T, lanes>;
        for (; i + lanes <= count; i += lanes) {
            const auto a = L::load(even + i), b = L::load(odd + i);
            L::store(L::low(a, b), to + 2 * i);
            L::store(L::high(a, b), to + 2 * i + lanes);
        }
        join_two<T, next_lanes<T>(lanes)>(even, odd, to, i, count);
    }
}

// Element x of a row <-> element x / phases of run x mod phases; runs start `run_stride` elements apart.
template <class T>
inline void split_row(const T* from, T* to, int64_t count, int64_t phases, int64_t run_stride) {
    if (phases == 2) return split_two<T, vector_bytes / int{sizeof(T)}>(from, to, to + run_stride, 0, count);
    for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t i = 0; i < count; ++i) to[phase * run_stride + i] = from[i * phases + phase];
}

template <class T>
inline void join_row(const T* from, T* to, int64_t count, int64_t phases, int64_t run_stride) {
    if (phases == 2) return join_two<T, vector_bytes / int{sizeof(T)}>(from, from + run_stride, to, 0, count);
    for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t i = 0; i < count; ++i) to[i * phases + phase] = from[phase * run_stride + i];
}

// Runs body(first element of a map row, first element of its runs) for each row of each plane.
template <class Body>
inline void each_row(Plane p, int64_t planes, const Body& body) {
    const int64_t width = p.columns * p.patch_w, positions = p.rows * p.columns;
    int64_t map = 0;
    for (int64_t plane = 0, start = 0; plane < planes; ++plane, start += p.patch_h * p.patch_w * positions)
        for (int64_t row = 0; row < p.rows; ++row)
            for (int64_t y = 0; y < p.patch_h; ++y, map += width) body(map, start + y * p.patch_w * positions + row * p.columns);
}

// Patches of 2 x 2 in the few columns of the maps of the networks. Where a row is no longer than a vector, two rows of equal phase go at
// once, since their positions follow each other.
template <class T, int columns>
struct Usual {
    static constexpr int64_t width = 2 * columns, pitch = 2 * width;  // from a row to the next of equal phase
    static constexpr int lanes = vector_bytes / int{sizeof(T)};
    static constexpr bool pairs = width <= lanes && width * int{sizeof(T)} >= 16;
    using Row = Lanes<T, pairs ? int{width} : 2>;

    static void unfold(int64_t rows, int64_t planes, const T* map, T* phases) {
        for (int64_t half = 0; half < 2 * planes; ++half) {
            const T* from = map + half / 2 * rows * pitch + half % 2 * width;
            T* even = phases + half * 2 * rows * columns;
            T* odd = even + rows * columns;
            int64_t row = 0;
            if constexpr (pairs) {
                for (; row + 2 <= rows; row += 2) {
                    const auto a = Row::load(from + row * pitch), b = Row::load(from + (row + 1) * pitch);
                    Row::store(Row::even(a, b), even + row * columns);
                    Row::store(Row::odd(a, b), odd + row * columns);
                }
            }
            for (; row < rows; ++row) split_two<T, lanes>(from + row * pitch, even + row * columns, odd + row * columns, 0, columns);
        }
    }

    static void fold(int64_t rows, int64_t planes, const T* phases, T* map) {
        for (int64_t half = 0; half < 2 * planes; ++half) {
            T* to = map + half / 2 * rows * pitch + half % 2 * width;
            const T* even = phases + half * 2 * rows * columns;
            const T* odd = even + rows * columns;
            int64_t row = 0;
            if constexpr (pairs) {
                for (; row + 2 <= rows; row += 2) {
                    const auto a = Row::load(even + row * columns), b = Row::load(odd + row * columns);
                    Row::store(Row::low(a, b), to + row * pitch);
                    Row::store(Row::high(a, b), to + (row + 1) * pitch);
                }
            }
            for (; row < rows; ++row) join_two<T, lanes>(even + row * columns, odd + row * columns, to + row * pitch, 0, columns);
        }
    }
};

template <class T>
void unfold(const Plane& p, int64_t planes, const void* map, void* phases) {
    const T* from = static_cast<const T*>(map);
    T* to = static_cast<T*>(phases);
    const bool usual = p.patch_h == 2 && p.patch_w == 2;
    if (usual && p.columns == 4) return Usual<T, 4>::unfold(p.rows, planes, from, to);
    if (usual && p.columns == 8) return Usual<T, 8>::unfold(p.rows, planes, from, to);
    if (usual && p.columns == 16) return Usual<T, 16>::unfold(p.rows, planes, from, to);
    const int64_t columns = p.columns, patch_w = p.patch_w, positions = p.rows * p.columns;
    each_row(p, planes, [&](int64_t row, int64_t run) { split_row(from + row, to + run, columns, patch_w, positions); });
}

template <class T>
void fold(const Plane& p, int64_t planes, const void* phases, void* map) {
    const T* from = static_cast<const T*>(phases);
    T* to = static_cast<T*>(map);
    const bool usual = p.patch_h == 2 && p.patch_w == 2;
    if (usual && p.columns == 4) return Usual<T, 4>::fold(p.rows, planes, from, to);
    if (usual && p.columns == 8) return Usual<T, 8>::fold(p.rows, planes, from, to);
    if (usual && p.columns == 16) return Usual<T, 16>::fold(p.rows, planes, from, to);
    const int64_t columns = p.columns, patch_w = p.patch_w, positions = p.rows * p.columns;
    each_row(p, planes, [&](int64_t row, int64_t run) { join_row(from + run, to + row, columns, patch_w, positions); });
}

// A call of memcpy for each pixel would cost as much as the pixel.
void move(const void* from, int64_t from_stride, void* to, int64_t to_stride, int64_t runs, int64_t bytes) {
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
    for (int64_t run = 0; run < runs; ++run, source += from_stride, target += to_stride) {
        if (bytes < chunk) {
            __builtin_memcpy(target, source, static_cast<size_t>(bytes));
            continue;
        }
        for (int64_t i = 0; i + chunk <= bytes; i += chunk) __builtin_memcpy(target + i, source + i, chunk);
        __builtin_memcpy(target + bytes - chunk, source + bytes - chunk, chunk);  // what is left, and some of it again
    }
}

}  // namespace

extern const PatchesKernels MVIT_ISA_SYMBOL(patches);
const PatchesKernels MVIT_ISA_SYMBOL(patches) = {
    {unfold<uint8_t>, unfold<uint16_t>, unfold<uint32_t>, unfold<uint64_t>},
    {fold<uint8_t>, fold<uint16_t>, fold<uint32_t>, fold<uint64_t>},
    move,
};

}  // namespace mvit
