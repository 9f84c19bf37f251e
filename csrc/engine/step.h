// What a step of a plan can be: every op whose arguments are a struct of numbers and pointers. A table of the struct's members lets a step
// be written down as names and values, so that a plan is data (a file, a dictionary) and no code belongs to one network.
#pragma once

#include <cstdint>

#include "cpu/core/types.h"

namespace mvit {

enum class FieldType : int { i64, i32, f32, f64, boolean, pointer };

struct Field {
    const char* name;
    int64_t offset;  // in the struct
    FieldType type;
};

struct StepKind {
    const char* name;
    int64_t bytes;  // of the struct, which begins as zeros
    const Field* fields;
    int64_t field_count;
    Status (*run)(void* arguments, int threads);

    const Field* find(const char* field) const;  // or null
};

inline constexpr int64_t most_step_bytes = 1536;

const StepKind* find_step_kind(const char* name);  // or null

}  // namespace mvit
