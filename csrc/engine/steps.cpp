#include "engine/steps.h"

#include <cstring>
#include <initializer_list>

namespace mvit {

const Field* StepKind::find(const char* field) const {
    for (int64_t i = 0; i < field_count; ++i)
        if (std::strcmp(fields[i].name, field) == 0) return fields + i;
    return nullptr;
}

const StepKind* find_step_kind(const char* name) {
    for (const StepKinds& kinds : {float_steps(), integer_steps()})
        for (int64_t i = 0; i < kinds.count; ++i)
            if (std::strcmp(kinds.first[i].name, name) == 0) return kinds.first + i;
    return nullptr;
}

}  // namespace mvit
