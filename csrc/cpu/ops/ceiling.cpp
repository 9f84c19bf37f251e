#include "cpu/ops/ceiling.h"

#include <chrono>
#include <vector>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_ISA_TABLE(CeilingKernels, ceiling)

namespace {

double rate_of(float (*chains)(int64_t, float, float), int64_t operations, int threads) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); };
    constexpr int64_t rounds = 1 << 17;
    const int count = threads > 0 ? threads : 1;
    std::vector<double> rates(static_cast<size_t>(count));
    std::vector<float> results(rates.size());
    double best = 0.0;  // interrupts only ever make it slower
    for (const auto start = Clock::now(); best == 0.0 || since(start) < 0.3;) {
        // Each thread by its own clock: how long it takes to wake it up is not what is asked.
        parallel_for(count, count, [&](int64_t task) {
            const auto begin = Clock::now();
            results[static_cast<size_t>(task)] = chains(rounds, 0.5f, 1.0f);
            rates[static_cast<size_t>(task)] = static_cast<double>(rounds * operations) / since(begin) / 1e9;
        });
        double all = 0.0;
        for (double rate : rates) all += rate;
        best = all > best ? all : best;
    }
    return best;
}

}  // namespace

double fma_gflops(int threads) {
    const CeilingKernels& kernels = ceiling_table.active();
    return rate_of(kernels.chains, kernels.operations, threads);
}

double bf16_gflops(int threads) {
    const CeilingKernels& kernels = ceiling_table.active();
    return rate_of(kernels.pairs, kernels.pair_operations, threads);
}

double dot_gops(int threads) {
    const CeilingKernels& kernels = ceiling_table.active();
    return rate_of(kernels.dots, kernels.dot_operations, threads);
}

}  // namespace mvit
