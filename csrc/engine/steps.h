// The steps of ops/ on floats (float_steps.cpp) and on integers (integer_steps.cpp).
#pragma once

#include "engine/step.h"

namespace mvit {

struct StepKinds {
    const StepKind* first;
    int64_t count;
};

StepKinds float_steps();
StepKinds integer_steps();

}  // namespace mvit
