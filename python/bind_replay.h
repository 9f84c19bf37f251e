// What runs the native calls of a function again, for bind_engine.cpp, which makes it, and bind_forms.cpp, which finds it.
#pragma once

#include <cstddef>

#include "engine/plan.h"

namespace mvit {

// A plan of all images at once, whose weights are where they were. It reads so many inputs, and writes its result and what lies between.
struct Replay {
    Plan plan;
    size_t inputs;
    bool large;  // enough work for a crew though it is one step
};

// With the GIL, which it gives back meanwhile.
Status run_again(Replay& replay, void* const* inputs, void* result, void* between, int threads);

}  // namespace mvit
