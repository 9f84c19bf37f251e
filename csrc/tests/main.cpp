#include "tests/check.h"

int main() {
    for (const auto& test : mvit::tests::registry()) {
        std::printf("%s ", test.name);
        std::fflush(stdout);
        test.run();
        std::printf("ok\n");
    }
    std::printf("%zu passed, 0 failed\n", mvit::tests::registry().size());
}
