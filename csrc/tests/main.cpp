#include "tests/check.h"

static bool chosen(const char* name, const char* by) {
    return by[0] == '-' ? !std::strstr(name, by + 1) : std::strstr(name, by) != nullptr;
}

// All tests, or those whose name has the first argument in it ("-name": those without), on every instruction set or plain C++ and the one
// that the second names.
int main(int count, char** arguments) {
    size_t passed = 0;
    if (count > 2) {
        mvit::tests::only_isa = arguments[2];
        for (int level = 0; level < mvit::isa_count; ++level)  // from here on, for tests that do not choose
            if (const auto isa = static_cast<mvit::Isa>(level); mvit::tests::runs_on(isa)) mvit::isa_set(isa);
        if (std::strcmp(mvit::isa_name(mvit::isa_active()), arguments[2]) != 0) {
            std::printf("%s is not supported here\n", arguments[2]);
            return 1;
        }
    }
    for (const auto& test : mvit::tests::registry()) {
        if (count > 1 && !chosen(test.name, arguments[1])) continue;
        std::printf("%s ", test.name);
        std::fflush(stdout);
        test.run();
        std::printf("ok\n");
        ++passed;
    }
    std::printf("%zu passed, 0 failed\n", passed);
}
