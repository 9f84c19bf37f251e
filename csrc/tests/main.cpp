#include "tests/check.h"

// All tests, or those whose name has the first argument in it.
int main(int count, char** arguments) {
    size_t passed = 0;
    for (const auto& test : mvit::tests::registry()) {
        if (count > 1 && !std::strstr(test.name, arguments[1])) continue;
        std::printf("%s ", test.name);
        std::fflush(stdout);
        test.run();
        std::printf("ok\n");
        ++passed;
    }
    std::printf("%zu passed, 0 failed\n", passed);
}
