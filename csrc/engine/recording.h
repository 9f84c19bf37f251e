// What a thread runs ops with, written down while it runs them: to become the steps of a plan that does the same again.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/step.h"

namespace mvit {

// The step that an op is where it is called with its own struct, not with what a plan's step of that name adds to it: that begins with the
// struct, and what lies behind it is left out. An unknown name: none.
struct DirectKind {
    StepKind kind;
    DirectKind(const char* name, int64_t bytes, Status (*run)(void*, int));
    bool exists() const { return kind.run != nullptr; }
};

class Recording {
  public:
    struct Call {
        const StepKind* kind;
        std::vector<char> arguments;
        uintptr_t weight;
    };
    struct Pointer {
        int64_t at;  // in the arguments; -1 of what stays where it is
        uintptr_t address;
    };

    // The one that writes down what the calling thread runs, or null.
    static Recording* current();
    static void set_current(Recording* recording);

    // weight: an address in the memory that arguments point to which have no fields, or 0.
    void add(const DirectKind& direct, const void* arguments, uintptr_t weight = 0);

    // A call that cannot be written down.
    void miss() { whole_ = false; }

    // Every call is written down.
    bool whole() const { return whole_; }
    const std::vector<Call>& calls() const { return calls_; }

    // The pointers among a call's arguments, but for null.
    static std::vector<Pointer> pointers(const Call& call);

    // Whether something else among a call's arguments could be an address in [begin, end).
    static bool hides(const Call& call, uintptr_t begin, uintptr_t end);

  private:
    bool whole_ = true;
    std::vector<Call> calls_;
};

}  // namespace mvit
