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

// --- what isa/patches.cpp implements: one channels-first plane, H x W elements <-> P x N elements ---

struct PatchesPlane {
    int64_t height, width, patch_h, patch_w;
};

struct PatchesKernels {
    // Indexed by log2 of the element size.
    void (*unfold[4])(const PatchesPlane&, const void* map, void* phases);
    void (*fold[4])(const PatchesPlane&, const void* phases, void* map);
};

}  // namespace mvit
