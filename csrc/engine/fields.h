// How tables of steps are written: see steps.cpp.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "engine/step.h"

namespace mvit {

template <class T>
constexpr FieldType field_type() {
    if constexpr (std::is_pointer_v<T>) return FieldType::pointer;
    if constexpr (std::is_same_v<T, bool>) return FieldType::boolean;
    if constexpr (std::is_same_v<T, float>) return FieldType::f32;
    if constexpr (std::is_same_v<T, double>) return FieldType::f64;
    if constexpr (std::is_same_v<T, int64_t>) return FieldType::i64;
    constexpr bool other = std::is_pointer_v<T> || std::is_same_v<T, bool> || std::is_same_v<T, double> || std::is_same_v<T, int64_t>;
    static_assert(other || sizeof(T) == 4);
    return FieldType::i32;  // and enums
}

// A member of the struct Arguments, by name.
#define MVIT_FIELD(member) \
    Field { #member, offsetof(Arguments, member), field_type<std::remove_cvref_t<decltype(std::declval<Arguments&>().member)>>() }

// The step of an op that takes its struct as it is.
template <class Arguments, Status (*op)(const Arguments&, int)>
Status run_op(void* arguments, int threads) {
    return op(*static_cast<const Arguments*>(arguments), threads);
}

template <class Arguments, int64_t count>
constexpr StepKind step_kind(const char* name, const Field (&fields)[count], Status (*run)(void*, int)) {
    static_assert(std::is_trivially_copyable_v<Arguments> && sizeof(Arguments) <= most_step_bytes);
    return {name, sizeof(Arguments), fields, count, run};
}

}  // namespace mvit
