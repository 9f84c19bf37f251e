// One plane of a map <-> its runs of equal phase; see ops/patches.h. The loops are plain: with two phases, the case of every published
// model, compilers turn them into full-width loads and permutes under each ISA's flags.
#include "cpu/ops/patches.h"

#include "cpu/core/isa.h"

namespace mvit {
namespace {

using Plane = PatchesPlane;

// Element x of a row <-> element x / phases of run x mod phases; runs start `run_stride` elements apart.
template <class T>
inline void split_row(const T* __restrict from, T* __restrict to, int64_t count, int64_t phases, int64_t run_stride) {
    if (phases == 2) {
        T* __restrict even = to;
        T* __restrict odd = to + run_stride;
        for (int64_t i = 0; i < count; ++i) {
            even[i] = from[2 * i];
            odd[i] = from[2 * i + 1];
        }
        return;
    }
    for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t i = 0; i < count; ++i) to[phase * run_stride + i] = from[i * phases + phase];
}

template <class T>
inline void join_row(const T* __restrict from, T* __restrict to, int64_t count, int64_t phases, int64_t run_stride) {
    if (phases == 2) {
        const T* __restrict even = from;
        const T* __restrict odd = from + run_stride;
        for (int64_t i = 0; i < count; ++i) {
            to[2 * i] = even[i];
            to[2 * i + 1] = odd[i];
        }
        return;
    }
    for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t i = 0; i < count; ++i) to[i * phases + phase] = from[phase * run_stride + i];
}

// Where the runs of map row y start inside the plane of phases.
inline int64_t runs_of(const Plane& p, int64_t y) {
    const int64_t columns = p.width / p.patch_w, positions = p.height / p.patch_h * columns;
    return y % p.patch_h * p.patch_w * positions + y / p.patch_h * columns;
}

template <class T>
void unfold(const Plane& p, const void* map, void* phases) {
    const int64_t columns = p.width / p.patch_w, positions = p.height / p.patch_h * columns;
    for (int64_t y = 0; y < p.height; ++y)
        split_row(static_cast<const T*>(map) + y * p.width, static_cast<T*>(phases) + runs_of(p, y), columns, p.patch_w, positions);
}

template <class T>
void fold(const Plane& p, const void* phases, void* map) {
    const int64_t columns = p.width / p.patch_w, positions = p.height / p.patch_h * columns;
    for (int64_t y = 0; y < p.height; ++y)
        join_row(static_cast<const T*>(phases) + runs_of(p, y), static_cast<T*>(map) + y * p.width, columns, p.patch_w, positions);
}

}  // namespace

extern const PatchesKernels MVIT_ISA_SYMBOL(patches);
const PatchesKernels MVIT_ISA_SYMBOL(patches) = {
    {unfold<uint8_t>, unfold<uint16_t>, unfold<uint32_t>, unfold<uint64_t>},
    {fold<uint8_t>, fold<uint16_t>, fold<uint32_t>, fold<uint64_t>},
};

}  // namespace mvit
