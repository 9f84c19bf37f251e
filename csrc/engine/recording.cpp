#include "engine/recording.h"

#include <cstring>

namespace mvit {

namespace {

thread_local Recording* current_recording = nullptr;

uintptr_t word_at(const Recording::Call& call, int64_t at) {
    uintptr_t word;
    std::memcpy(&word, call.arguments.data() + at, sizeof(word));
    return word;
}

bool is_pointer_at(const Recording::Call& call, int64_t at) {
    for (int64_t i = 0; i < call.kind->field_count; ++i)
        if (call.kind->fields[i].type == FieldType::pointer && call.kind->fields[i].offset == at) return true;
    return false;
}

}  // namespace

DirectKind::DirectKind(const char* name, int64_t bytes, Status (*run)(void*, int)) : kind{} {
    const StepKind* found = find_step_kind(name);
    if (found && bytes <= found->bytes) kind = {found->name, bytes, found->fields, found->field_count, run};
}

Recording* Recording::current() { return current_recording; }
void Recording::set_current(Recording* recording) { current_recording = recording; }

void Recording::add(const DirectKind& direct, const void* arguments, uintptr_t weight) {
    if (!direct.exists()) return miss();
    const auto* bytes = static_cast<const char*>(arguments);
    calls_.push_back({&direct.kind, std::vector<char>(bytes, bytes + direct.kind.bytes), weight});
}

std::vector<Recording::Pointer> Recording::pointers(const Call& call) {
    constexpr auto size = static_cast<int64_t>(sizeof(uintptr_t));
    std::vector<Pointer> found;
    if (call.weight != 0) found.push_back({-1, call.weight});
    for (int64_t at = 0; at + size <= call.kind->bytes; at += size)
        if (is_pointer_at(call, at) && word_at(call, at) != 0) found.push_back({at, word_at(call, at)});
    return found;
}

bool Recording::hides(const Call& call, uintptr_t begin, uintptr_t end) {
    constexpr auto size = static_cast<int64_t>(sizeof(uintptr_t));
    for (int64_t at = 0; at + size <= call.kind->bytes; at += size) {
        const uintptr_t word = word_at(call, at);
        if (begin <= word && word < end && !is_pointer_at(call, at)) return true;
    }
    return false;
}

}  // namespace mvit
