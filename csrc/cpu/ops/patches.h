// Unfold and fold of pixel phases (MobileViT, arXiv 2110.02178, section 3.1): a copy between a map (B, C, H, W) and its phases
// (B, C, P, N), P = patch_h patch_w. Pixel (y, x) is position n = (y / patch_h) (W / patch_w) + x / patch_w of phase
// p = (y mod patch_h) patch_w + x mod patch_w. The bytes move unchanged, so elements are known by their size only: 1, 2, 4 or 8 bytes.
//
// Floor: every byte is read once and written once, at the bandwidth of a copy.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct PatchesProblem {
    int element_size;
    int64_t batch, channels, height, width, patch_h, patch_w;
    bool channels_last;  // both tensors: memory is (B, C, H, W) and (B, C, P, N), or (B, H, W, C) and (B, P, N, C), dense
    const void* from;
    void* to;
};

Status unfold_patches(const PatchesProblem& problem, int threads);
Status fold_patches(const PatchesProblem& problem, int threads);

// --- what isa/patches.cpp implements ---

struct PatchesPlane {
    int64_t rows, columns, patch_h, patch_w;  // rows and columns of patches
};

struct PatchesKernels {
    // Channels first: planes of H x W elements <-> as many of P x N elements. Indexed by log2 of the element size.
    void (*unfold[4])(const PatchesPlane&, int64_t planes, const void* map, void* phases);
    void (*fold[4])(const PatchesPlane&, int64_t planes, const void* phases, void* map);
    // Channels last: runs of so many bytes, a pixel each, whose starts are a stride apart.
    void (*move)(const void* from, int64_t from_stride, void* to, int64_t to_stride, int64_t runs, int64_t bytes);
};

}  // namespace mvit
