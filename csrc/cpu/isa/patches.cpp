// One row of a map <-> its runs of equal phase; see ops/patches.h. The loops are plain: with two phases, the case of every published
// model, compilers turn them into full-width loads and permutes under each ISA's flags.
#include "cpu/ops/patches.h"

#include "cpu/core/isa.h"

namespace mvit {
namespace {

template <class T>
void split_row(const void* row, void* runs, int64_t count, int64_t phases, int64_t run_stride) {
    const T* __restrict from = static_cast<const T*>(row);
    T* __restrict to = static_cast<T*>(runs);
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
void join_row(const void* runs, void* row, int64_t count, int64_t phases, int64_t run_stride) {
    const T* __restrict from = static_cast<const T*>(runs);
    T* __restrict to = static_cast<T*>(row);
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

}  // namespace

extern const PatchesKernels MVIT_ISA_SYMBOL(patches);
const PatchesKernels MVIT_ISA_SYMBOL(patches) = {
    {split_row<uint8_t>, split_row<uint16_t>, split_row<uint32_t>, split_row<uint64_t>},
    {join_row<uint8_t>, join_row<uint16_t>, join_row<uint32_t>, join_row<uint64_t>},
};

}  // namespace mvit
